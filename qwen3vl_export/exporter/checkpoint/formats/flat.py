"""Readers of matrices whose values follow one another in blocks that do not end with their rows.

Such a matrix [R, C] is read as one column [R * C, 1], in which blocks are consecutive rows, and reshaped at the end.
Knows arithmetic; nothing about names or settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..safetensors_file import StoredTensor
from ..tensors import Allocator, StoredReader, WrappedReader, allocate_anew


def as_column(stored: StoredTensor, dtype: torch.dtype | None = None) -> StoredReader:
    """All values of a stored tensor as a column [n, 1].

    Args:
        dtype: what its bytes are taken for; default its own dtype.
    """
    count = prod(stored.shape) * stored.dtype.itemsize
    dtype = dtype or stored.dtype
    return StoredReader(replace(stored, shape=(count // dtype.itemsize, 1), dtype=dtype))


@dataclass(frozen=True)
class LookupReader(WrappedReader):
    """A tensor of codes, each replaced by its number in a table, float32."""

    table: tuple[float, ...]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        codes = self.reader.read(rows, allocate_anew)
        values = allocate(tuple(codes.shape), dtype=self.dtype)
        torch.index_select(torch.tensor(self.table), 0, codes.int().flatten(), out=values.view(-1))
        return values


@dataclass(frozen=True)
class MappedReader(WrappedReader):
    """A float32 tensor with a function applied to each of its values.

    Attributes:
        function: changes values in place, and returns them.
    """

    function: Callable[[Tensor], Tensor]

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.function(self.reader.read(rows, allocate))


@dataclass(frozen=True)
class ReshapedReader(WrappedReader):
    """A matrix [R, C] whose values, row after row, are a column [R * C, 1]."""

    matrix_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix_shape

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        columns = self.matrix_shape[1]
        return self.reader.read(slice(rows.start * columns, rows.stop * columns), allocate).view(-1, columns)
