"""Blockwise integers: a weight's rows cut into blocks, each block stored as small integers and one scale.

    w[n, k] ~ scale[n, k // block] * (q[n, k] - zero_point[n, k // block])

Symmetric blocks have the fixed zero point 2^(bits-1), and a scale whose sign puts the value of largest magnitude on the
lowest integer, the one that has no opposite. Asymmetric blocks spread over [min, max]. `search` also tries scales
around that one and keeps, block by block, the one with the least squared error; no data is needed for it.

The byte layout is that of `com.microsoft.MatMulNBits` and `GatherBlockQuantized`: lower half-byte first.
Knows tensors; nothing about graphs or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEARCH = tuple(0.70 + 0.025 * step for step in range(15))  # 0.70 to 1.05 of the plain scale


@dataclass(frozen=True)
class Blocks:
    """Quantized rows.

    Attributes:
        data: uint8 [N, blocks, block_size * bits / 8].
        scales: [N, blocks], in the dtype that is stored.
        zero_points: uint8 [N, ceil(blocks * bits / 8)], packed like the data; None if symmetric.
        restored: float32 [N, K], what the integers stand for.
    """

    data: Tensor
    scales: Tensor
    zero_points: Tensor | None
    restored: Tensor


def quantize_rows(
    rows: Tensor, bits: int, block_size: int, symmetric: bool, search: bool, scale_dtype: torch.dtype
) -> Blocks:
    """Quantize float32 rows [N, K]; K is padded to whole blocks."""
    count, width = rows.shape
    blocks = -(-width // block_size)
    missing = blocks * block_size - width
    padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    cut = padded.reshape(count, blocks, block_size)
    plain, zero = _symmetric(cut, bits) if symmetric else _asymmetric(cut, bits)
    scales, integers = _round(cut, plain, zero, bits, scale_dtype)
    if search:
        scales, integers = _best(cut, plain, zero, bits, scale_dtype, (scales, integers))
    restored = ((integers - zero) * scales.to(torch.float32)[:, :, None]).reshape(count, -1)[:, :width]
    packed_zero = None if symmetric else pack(zero[:, :, 0].to(torch.uint8), bits)
    return Blocks(pack(integers.to(torch.uint8), bits), scales, packed_zero, restored)


def _symmetric(cut: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales [N, blocks] and zero points [N, blocks, 1] of symmetric blocks."""
    low, high = cut.amin(-1), cut.amax(-1)
    extreme = torch.where(high > -low, high, low)
    half = float(2 ** (bits - 1))
    return extreme / -half, torch.full_like(extreme, half)[:, :, None]


def _asymmetric(cut: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of blocks that spread over [min, max]; zero itself is always exact."""
    low, high = cut.amin(-1).clamp(max=0), cut.amax(-1).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    zero = torch.where(scales > 0, -low / _no_zeros(scales), 0.0).round().clamp(0, 2**bits - 1)
    return scales, zero[:, :, None]


def _round(cut: Tensor, scales: Tensor, zero: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales as they are stored, and the nearest integers (float32 values) under them."""
    stored = scales.to(dtype)
    integers = cut / _no_zeros(stored.to(torch.float32))[:, :, None]
    return stored, integers.add_(zero).round_().clamp_(0, 2**bits - 1)


def _best(
    cut: Tensor, plain: Tensor, zero: Tensor, bits: int, dtype: torch.dtype, first: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each block the scale of `SEARCH` with the least squared error; `first` stays where none is better."""
    scales, integers = first
    least = _error(cut, scales, integers, zero)
    for factor in SEARCH:
        tried, rounded = _round(cut, plain * factor, zero, bits, dtype)
        error = _error(cut, tried, rounded, zero)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, tried, scales)
        integers = torch.where(better[:, :, None], rounded, integers)
    return scales, integers


def _error(cut: Tensor, scales: Tensor, integers: Tensor, zero: Tensor) -> Tensor:
    return ((integers - zero) * scales.to(torch.float32)[:, :, None] - cut).square().sum(-1)


def _no_zeros(scales: Tensor) -> Tensor:
    """1 in place of 0: a block of zeros has scale 0, and must not divide by it."""
    return torch.where(scales == 0, 1.0, scales)


def pack(integers: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] to [..., ceil(n * bits / 8)], lower half-byte first."""
    if bits == 8:
        return integers
    odd = integers.shape[-1] % 2
    even = torch.nn.functional.pad(integers, (0, 1)) if odd else integers.contiguous()
    pairs = even.view(torch.int16)  # first + second * 256 on any machine torch runs on
    return (pairs | (pairs >> 4)).to(torch.uint8)
