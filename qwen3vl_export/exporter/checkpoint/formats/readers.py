"""Readers that restore a quantized matrix, some rows at a time: codes, zero points, scales, and their product.

A value is (code - zero point) x scale, computed in float32: exact for integers of up to 8 bits and float8 where scales
are in half precision, so that a cast to the scales' dtype gives the very bits of arithmetic in that dtype. Knows
arithmetic and the packing of words; nothing about names or settings.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..safetensors_file import StoredTensor
from ..tensors import Allocator, TensorReader, allocate_anew

WORD_BITS = 32
CHUNK_BYTES = 1 << 20  # of a file, read at once
BAND_BYTES = 32 << 20  # of a stored matrix's columns, kept for the rows that are read next
BANDS = 4  # per thread: a matrix's codes, zero points and scales, and one more


class Bands(threading.local):
    """Columns of stored matrices that the current thread read last."""

    def __init__(self) -> None:
        self._bands: OrderedDict[StoredTensor, tuple[int, Tensor]] = OrderedDict()

    def read(self, stored: StoredTensor, columns: slice) -> Tensor:
        """Columns [R, n] of a stored matrix [R, C]; not contiguous, and not to be written to.

        Raises:
            CheckpointError: the file has become shorter.
        """
        first, band = self._bands.get(stored, (0, None))
        if band is None or columns.start < first or columns.stop > first + band.shape[1]:
            height, width = stored.shape
            fitting = BAND_BYTES // max(1, height * stored.dtype.itemsize)
            first, stop = columns.start, min(width, max(columns.stop, columns.start + fitting))
            self._bands.pop(stored, None)
            self._bands[stored] = first, band = first, _read_columns(stored, slice(first, stop))
            while len(self._bands) > BANDS:
                self._bands.popitem(last=False)
        return band[:, columns.start - first : columns.stop - first]


_BANDS = Bands()


def _read_columns(stored: StoredTensor, columns: slice) -> Tensor:
    """A copy of some columns; the file's rows pass through a chunk."""
    height, width = stored.shape
    band = torch.empty(height, columns.stop - columns.start, dtype=stored.dtype)
    count = max(1, CHUNK_BYTES // max(1, width * stored.dtype.itemsize))
    chunk = torch.empty(count, width, dtype=stored.dtype)
    for start in range(0, height, count):
        stop = min(start + count, height)
        band[start:stop] = stored.read(slice(start, stop), chunk[: stop - start])[:, columns]
    return band


@dataclass(frozen=True)
class ColumnsReader:
    """A stored matrix [R, C] read by its columns, [C, R]."""

    stored: StoredTensor

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return _BANDS.read(self.stored, rows).t()


@dataclass(frozen=True)
class UnpackedReader:
    """Unsigned integers of a matrix [R, C], packed in words along its rows or its columns.

    Attributes:
        words: [R, C / k] or [R / k, C], k integers to a word of the dtype's width, rounded up.
        axis: the one that is packed.
        places: the place in a word, counted from its lowest bits, of each of its k integers in turn; default in order.
        word_offset: is added to every word, and wraps around.
        offset: is subtracted from every integer.
    """

    words: TensorReader
    shape: tuple[int, ...]
    bits: int
    axis: int
    places: tuple[int, ...] = ()
    word_offset: int = 0
    offset: int = 0

    @property
    def file(self) -> Path:
        return self.words.file

    @property
    def dtype(self) -> torch.dtype:
        return self.words.dtype

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        per_word = 8 * self.words.dtype.itemsize // self.bits
        packed = rows
        if self.axis == 0:
            packed = slice(rows.start // per_word, -(-rows.stop // per_word))
        words = self.words.read(packed, allocate_anew) + self.word_offset
        shifts = self.bits * torch.tensor(self.places or range(per_word), dtype=self.dtype)
        shifts = shifts.view(-1, 1) if self.axis == 0 else shifts
        spread: Tensor = (words.unsqueeze(self.axis + 1) >> shifts) & (2**self.bits - 1)
        integers = spread.flatten(self.axis, self.axis + 1)
        if self.axis == 0:
            integers = integers[rows.start - per_word * packed.start :][: rows.stop - rows.start]
        return integers[:, : self.shape[1]].sub(self.offset)


@dataclass(frozen=True)
class SpreadReader:
    """A grid of numbers [..., r, c], each repeated over its block of a matrix [..., R, C].

    Attributes:
        block: rows and columns that share a number.
        column_groups: the grid's column of each column of the matrix; default consecutive blocks.
    """

    grid: TensorReader
    shape: tuple[int, ...]
    block: tuple[int, int]
    column_groups: StoredTensor | None = None

    @property
    def file(self) -> Path:
        return self.grid.file

    @property
    def dtype(self) -> torch.dtype:
        return self.grid.dtype

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.read_blocks(rows, 1)

    def read_blocks(self, rows: slice, size: int) -> Tensor:
        """As `read`, of every `size`-th column only: the numbers of blocks of columns that share one."""
        (*stack, height, _), (tall, _) = self.shape, self.block
        lines = slice(0, height) if stack else rows
        first = lines.start // tall
        grid = self.grid.read(rows if stack else slice(first, -(-lines.stop // tall)), allocate_anew)
        repeated = grid.repeat_interleave(min(tall, lines.stop), -2)  # much faster than by index
        repeated = repeated.narrow(-2, lines.start - first * tall, lines.stop - lines.start)
        return repeated.index_select(-1, self.grid_columns()[::size])

    def grid_columns(self) -> Tensor:
        """int64 [C], the grid's column of each column of the matrix."""
        if self.column_groups is not None:
            return read_whole(self.column_groups).to(torch.int64)
        return torch.arange(self.shape[-1]) // self.block[1]

    def shares_blocks(self, size: int) -> bool:
        """Whether the columns of every block of `size` share a number; the last block may be cut."""
        groups = self.grid_columns()
        return torch.equal(groups, groups[::size].repeat_interleave(size)[: len(groups)])


@dataclass(frozen=True)
class ScaledReader:
    """A matrix of (code - zero point) x scale, float32.

    Attributes:
        codes: integers or float8.
        scales: of the same shape.
        zero_points: of the same shape; None is zero.
    """

    codes: TensorReader
    scales: SpreadReader
    zero_points: SpreadReader | None = None

    @property
    def file(self) -> Path:
        return self.codes.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        codes = self.codes.read(rows, allocate_anew)
        values = allocate(tuple(codes.shape), dtype=self.dtype).copy_(codes)
        if self.zero_points is not None:
            values.sub_(self.zero_points.read(rows, allocate_anew).to(self.dtype))
        return values.mul_(self.scales.read(rows, allocate_anew))


def read_whole(stored: StoredTensor) -> Tensor:
    """A small stored tensor.

    Raises:
        CheckpointError: the file has become shorter.
    """
    return stored.read(slice(0, stored.shape[0] if stored.shape else 0), torch.empty(stored.shape, dtype=stored.dtype))
