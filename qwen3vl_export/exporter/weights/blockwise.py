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
class Grid:
    """The numbers that each block's integers can stand for.

    Attributes:
        scales: [N, blocks], in the dtype that is stored.
        zero: float32 [N, blocks], the integer that stands for 0.
    """

    scales: Tensor
    zero: Tensor


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

    def rows(self, index: Tensor) -> Blocks:
        """These rows, in this order."""
        own = self.zero_points[index] if self.zero_points is not None else None
        return Blocks(self.data[index], self.scales[index], own, self.restored[index])


def quantize_rows(
    rows: Tensor, bits: int, block_size: int, symmetric: bool, search: bool, scale_dtype: torch.dtype
) -> Blocks:
    """Quantize float32 rows [N, K], each weight to the nearest integer; K is padded to whole blocks."""
    cut = in_blocks(rows, block_size)
    grid = block_grid(cut, bits, symmetric, search, scale_dtype)
    return packed(_nearest(cut, grid.scales, grid.zero, bits), grid, bits, symmetric, rows.shape[1])


def in_blocks(rows: Tensor, block_size: int) -> Tensor:
    """[N, K] to [N, blocks, block_size], padded with zeros."""
    count, width = rows.shape
    blocks = -(-width // block_size)
    missing = blocks * block_size - width
    padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    return padded.reshape(count, blocks, block_size)


def block_grid(
    cut: Tensor,
    bits: int,
    symmetric: bool,
    search: bool,
    scale_dtype: torch.dtype,
) -> Grid:
    """The grid of each block.

    Args:
        cut: float32 [N, blocks, block_size].
        search: try the scales of `SEARCH` as well, and keep the one with the least squared error.
    """
    plain, zero = _symmetric(cut, bits) if symmetric else _asymmetric(cut, bits)
    scales = plain.to(scale_dtype)
    if not search:
        return Grid(scales, zero)
    least = _error(cut, scales, zero, bits)
    for factor in SEARCH:
        tried = (plain * factor).to(scale_dtype)
        error = _error(cut, tried, zero, bits)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, tried, scales)
    return Grid(scales, zero)


def packed(integers: Tensor, grid: Grid, bits: int, symmetric: bool, width: int) -> Blocks:
    """Integers (float32 values [N, blocks, block_size]) of rows [N, width] under a grid, as they are stored."""
    zero_points = None if symmetric else pack(grid.zero.to(torch.uint8), bits)
    return Blocks(pack(integers.to(torch.uint8), bits), grid.scales, zero_points, _restored(integers, grid, width))


def from_stored(data: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, width: int) -> Blocks:
    """Blocks of rows [N, width] from the arrays that `packed` made of them."""
    zero = torch.full(scales.shape, float(2 ** (bits - 1)))
    if zero_points is not None:
        zero = unpack(zero_points, bits)[:, : scales.shape[1]].to(torch.float32)
    restored = _restored(unpack(data, bits).to(torch.float32), Grid(scales, zero), width)
    return Blocks(data, scales, zero_points, restored)


def _restored(integers: Tensor, grid: Grid, width: int) -> Tensor:
    wide = (integers - grid.zero[:, :, None]) * grid.scales.to(torch.float32)[:, :, None]
    return wide.flatten(1)[:, :width]


def _symmetric(cut: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of symmetric blocks."""
    low, high = cut.amin(-1), cut.amax(-1)
    extreme = torch.where(high > -low, high, low)
    half = float(2 ** (bits - 1))
    return extreme / -half, torch.full_like(extreme, half)


def _asymmetric(cut: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of blocks that spread over [min, max]; zero itself is always exact."""
    low, high = cut.amin(-1).clamp(max=0), cut.amax(-1).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    zero = torch.where(scales > 0, -low / _no_zeros(scales), 0.0).round().clamp(0, 2**bits - 1)
    return scales, zero


def _nearest(cut: Tensor, scales: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest integers (float32 values) under stored scales."""
    integers = cut / _no_zeros(scales.to(torch.float32))[:, :, None]
    return integers.add_(zero[:, :, None]).round_().clamp_(0, 2**bits - 1)


def _error(cut: Tensor, scales: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Squared error of each block, [N, blocks]."""
    restored = _nearest(cut, scales, zero, bits).sub_(zero[:, :, None]).mul_(scales.to(torch.float32)[:, :, None])
    return restored.sub_(cut).square_().sum(-1)


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


def unpack(data: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`; an odd number of integers comes back with a 0 after it."""
    if bits == 8:
        return data
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)
