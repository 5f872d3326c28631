"""Blockwise integers: a weight's rows split into blocks, each block stored as small integers and one scale.

    w[n, k] ~ scale[n, k // block_size] * (q[n, k] - zero_point[n, k // block_size])

Symmetric blocks have the fixed zero point 2^(bits-1), and a scale whose sign maps the value of largest magnitude to the
lowest integer, the one without an opposite. Asymmetric blocks span [min, max]. `search` also tries scales around that
one and keeps, for each block, the scale with the least squared error; it needs no data.

The byte layout is that of `com.microsoft.MatMulNBits` and `GatherBlockQuantized`: lower half-byte first.
Knows tensors; nothing about graphs or files.

Legend: N rows, K values of a row, B blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEARCH_FACTORS = tuple(0.70 + 0.025 * step for step in range(15))  # 0.70 to 1.05 of the plain scale


@dataclass(frozen=True)
class Grid:
    """The numbers that the integers of each block can represent.

    Attributes:
        scales: [N, B], in the dtype that is stored.
        zero: float32 [N, B], the integer that represents 0.
    """

    scales: Tensor
    zero: Tensor


@dataclass(frozen=True)
class PackedRows:
    """Quantized rows.

    Attributes:
        data: uint8 [N, B, block_size * bits / 8].
        scales: [N, B], in the dtype that is stored.
        zero_points: uint8 [N, ceil(B * bits / 8)], packed like the data; None if symmetric.
        dequantized: float32 [N, K], the values that the integers represent.
    """

    data: Tensor
    scales: Tensor
    zero_points: Tensor | None
    dequantized: Tensor

    def select(self, index: Tensor) -> PackedRows:
        """The rows that `index` (int64 [n]) names, in its order."""
        zero_points = self.zero_points[index] if self.zero_points is not None else None
        return PackedRows(self.data[index], self.scales[index], zero_points, self.dequantized[index])


def quantize_nearest(
    rows: Tensor, bits: int, block_size: int, symmetric: bool, search: bool, scale_dtype: torch.dtype
) -> PackedRows:
    """Quantize float32 rows [N, K], each value to the nearest integer; K is padded to whole blocks."""
    blocks = split_blocks(rows, block_size)
    grid = fit_grid(blocks, bits, symmetric, search, scale_dtype)
    return pack_rows(_round(blocks, grid.scales, grid.zero, bits), grid, bits, symmetric, rows.shape[1])


def split_blocks(rows: Tensor, block_size: int) -> Tensor:
    """[N, K] to [N, B, block_size], padded with zeros."""
    count, width = rows.shape
    blocks = -(-width // block_size)
    missing = blocks * block_size - width
    padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    return padded.reshape(count, blocks, block_size)


def fit_grid(
    blocks: Tensor,
    bits: int,
    symmetric: bool,
    search: bool,
    scale_dtype: torch.dtype,
) -> Grid:
    """The grid of each block.

    Args:
        blocks: float32 [N, B, block_size].
        search: also try the scales of `SEARCH_FACTORS`, and keep the one with the least squared error.
    """
    plain, zero = _symmetric(blocks, bits) if symmetric else _asymmetric(blocks, bits)
    scales = plain.to(scale_dtype)
    if not search:
        return Grid(scales, zero)
    least = _squared_error(blocks, scales, zero, bits)
    for factor in SEARCH_FACTORS:
        candidate = (plain * factor).to(scale_dtype)
        error = _squared_error(blocks, candidate, zero, bits)
        better = error < least
        least = torch.where(better, error, least)
        scales = torch.where(better, candidate, scales)
    return Grid(scales, zero)


def pack_rows(integers: Tensor, grid: Grid, bits: int, symmetric: bool, width: int) -> PackedRows:
    """Pack the integers (float32 values [N, B, block_size]) of rows [N, width] on a grid."""
    zero_points = None if symmetric else pack_integers(grid.zero.to(torch.uint8), bits)
    data = pack_integers(integers.to(torch.uint8), bits)
    return PackedRows(data, grid.scales, zero_points, _dequantize(integers, grid, width))


def unpack_rows(data: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int, width: int) -> PackedRows:
    """Rows [N, width] from the arrays that `pack_rows` made of them."""
    zero = torch.full(scales.shape, float(2 ** (bits - 1)))
    if zero_points is not None:
        zero = unpack_integers(zero_points, bits)[:, : scales.shape[1]].to(torch.float32)
    dequantized = _dequantize(unpack_integers(data, bits).to(torch.float32), Grid(scales, zero), width)
    return PackedRows(data, scales, zero_points, dequantized)


def _dequantize(integers: Tensor, grid: Grid, width: int) -> Tensor:
    padded = (integers - grid.zero[:, :, None]) * grid.scales.to(torch.float32)[:, :, None]
    return padded.flatten(1)[:, :width]


def _symmetric(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of symmetric blocks."""
    low, high = blocks.amin(-1), blocks.amax(-1)
    extreme = torch.where(high > -low, high, low)
    half = float(2 ** (bits - 1))
    return extreme / -half, torch.full_like(extreme, half)


def _asymmetric(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points of blocks that span [min, max]; zero itself is always exact."""
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    zero = torch.where(scales > 0, -low / _nonzero(scales), 0.0).round().clamp(0, 2**bits - 1)
    return scales, zero


def _round(blocks: Tensor, scales: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest integers (float32 values) under stored scales."""
    integers = blocks / _nonzero(scales.to(torch.float32))[:, :, None]
    return integers.add_(zero[:, :, None]).round_().clamp_(0, 2**bits - 1)


def _squared_error(blocks: Tensor, scales: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Squared error of each block, [N, B]."""
    dequantized = _round(blocks, scales, zero, bits).sub_(zero[:, :, None]).mul_(scales.to(torch.float32)[:, :, None])
    return dequantized.sub_(blocks).square_().sum(-1)


def _nonzero(scales: Tensor) -> Tensor:
    """1 in place of 0: a block of zeros has scale 0, which nothing can be divided by."""
    return torch.where(scales == 0, 1.0, scales)


def pack_integers(integers: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] to [..., ceil(n * bits / 8)], lower half-byte first."""
    if bits == 8:
        return integers
    odd = integers.shape[-1] % 2
    even = torch.nn.functional.pad(integers, (0, 1)) if odd else integers.contiguous()
    pairs = even.view(torch.int16)  # first + second * 256 on any machine torch runs on
    return (pairs | (pairs >> 4)).to(torch.uint8)


def unpack_integers(data: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_integers`; an odd number of integers is followed by a 0."""
    if bits == 8:
        return data
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)
