"""Integers of quantized tensors, as their files hold them, for operators that compute with them.

A value is (integer - zero point) x scale, and a block of neighbouring columns of a row shares zero point and scale.
Knows how readers compose a tensor; nothing about operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensors import StackedReader, TensorReader, WrappedReader, allocate_anew
from .readers import ScaledReader, SpreadReader, UnpackedReader

STRIP_ROWS = 1024  # of scales or zero points, read at once


@dataclass(frozen=True)
class IntegerMatrix:
    """A matrix [R, C] of integers of 4 or 8 bits.

    Attributes:
        lowest: the code that is integer 0: codes are signed in some forms.
    """

    reader: ScaledReader
    bits: int
    lowest: int

    @property
    def is_symmetric(self) -> bool:
        """Whether no zero points are stored, and the middle of the range stands for 0."""
        return self.reader.zero_points is None and -self.lowest == 1 << (self.bits - 1)

    @property
    def is_reordered(self) -> bool:
        """Whether the files name the group of each column."""
        return self.reader.scales.column_groups is not None

    @property
    def _spread(self) -> list[SpreadReader]:
        return [part for part in (self.reader.scales, self.reader.zero_points) if part is not None]

    def has_blocks(self, size: int) -> bool:
        """Whether the columns of every block of `size` share scale and zero point."""
        return all(part.shares_blocks(size) for part in self._spread)

    def has_scales_in(self, dtype: torch.dtype) -> bool:
        """Whether every scale is a number of `dtype`; where their own does not tell, they are read.

        Raises:
            CheckpointError: the file has become shorter.
        """
        grid = self.reader.scales.grid
        fits = torch.promote_types(grid.dtype, dtype) == dtype
        return fits or all(torch.equal(scales.to(dtype).to(grid.dtype), scales) for scales in _strips(grid))

    def has_small_zero_points(self) -> bool:
        """Whether every zero point is an integer of as many bits; where their packing does not tell, they are read.

        Raises:
            CheckpointError: the file has become shorter.
        """
        grid = self.reader.zero_points.grid if self.reader.zero_points is not None else None
        if grid is None or isinstance(grid, UnpackedReader):
            return True
        bounds = [torch.aminmax(points.to(torch.int32) - self.lowest) for points in _strips(grid)]
        return all(low >= 0 and high < 1 << self.bits for low, high in bounds)

    def read(self, rows: slice, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Some rows in blocks of `size`, which `has_blocks`.

        Returns:
            Unsigned integers int32 [n, C]; scales [n, B] in their own dtype; zero points int32 [n, B].

        Raises:
            CheckpointError: the file has become shorter.
        """
        integers = self.reader.codes.read(rows, allocate_anew).to(torch.int32) - self.lowest
        scales = self.reader.scales.read_blocks(rows, size)
        zero_points = torch.full(scales.shape, -self.lowest, dtype=torch.int32)
        if self.reader.zero_points is not None:
            zero_points += self.reader.zero_points.read_blocks(rows, size).to(torch.int32)
        return integers, scales, zero_points


def integer_matrices(tensor: TensorReader) -> tuple[IntegerMatrix, ...] | None:
    """The matrices whose rows follow one another in a tensor, from the headers alone; None if one is not of integers.

    Args:
        tensor: a matrix [R, C], or a stack of matrices [E, R, C].
    """
    matrices = [_integer_matrix(part) for part in _parts(tensor)]
    integers = tuple(matrix for matrix in matrices if matrix is not None)
    return integers if len(integers) == len(matrices) else None


def _integer_matrix(tensor: TensorReader) -> IntegerMatrix | None:
    if not isinstance(tensor, ScaledReader):
        return None
    if isinstance(tensor.codes, UnpackedReader):
        return IntegerMatrix(tensor, tensor.codes.bits, -tensor.codes.offset)
    return IntegerMatrix(tensor, 8, -128) if tensor.codes.dtype == torch.int8 else None


def is_quantized(tensor: TensorReader) -> bool:
    """Whether a tensor, or any part of it, is restored from codes and scales."""
    if isinstance(tensor, WrappedReader):
        return is_quantized(tensor.reader)
    if isinstance(tensor, StackedReader):
        return any(map(is_quantized, _parts(tensor)))
    return isinstance(tensor, ScaledReader)


def _parts(tensor: TensorReader) -> list[TensorReader]:
    """The tensors whose rows follow one another in a tensor."""
    return [part for parts in tensor.matrices for part in parts] if isinstance(tensor, StackedReader) else [tensor]


def _strips(grid: TensorReader) -> Iterator[Tensor]:
    """A grid, some rows at a time."""
    for start in range(0, grid.shape[0], STRIP_ROWS):
        yield grid.read(slice(start, min(start + STRIP_ROWS, grid.shape[0])), allocate_anew)
