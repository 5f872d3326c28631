"""How a checkpoint's tensors are read: some rows at a time, as transformers' modules hold them.

A `TensorReader` is a tensor without its values. Readers wrap one another: a stored tensor, one whose axes the file has
in another order, one restored from a quantized format. Knows nothing about names or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .safetensors_file import StoredTensor

STRIP_BYTES = 8 << 20  # of each tensor, when two are compared


class Allocator(Protocol):
    """Allocates memory to read a tensor into, like `torch.empty`."""

    def __call__(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor: ...


def allocate_anew(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
    """Memory of a tensor's own."""
    return torch.empty(shape, dtype=dtype)


class TensorReader(Protocol):
    """One tensor, read on demand."""

    @property
    def file(self) -> Path:
        """Where it is stored, for errors; the first of several files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in transformers' modules."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `read` returns."""

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        """Rows of the first axis, not necessarily contiguous; the slice has a start and a stop, and no step.

        Args:
            allocate: returns the memory to read into.

        Raises:
            CheckpointError: the file has become shorter.
        """


@dataclass(frozen=True)
class StoredReader:
    """A tensor as its file has it."""

    stored: StoredTensor

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        shape = (rows.stop - rows.start, *self.shape[1:]) if self.shape else ()
        return self.stored.read(rows, allocate(shape, dtype=self.dtype))


@dataclass(frozen=True)
class WrappedReader:
    """A reader of another reader's tensor: file, shape and dtype are that one's unless a subclass says otherwise."""

    reader: TensorReader

    @property
    def file(self) -> Path:
        return self.reader.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.reader.dtype


@dataclass(frozen=True)
class TransposedReader(WrappedReader):
    """A tensor whose last two axes are stored in the opposite order."""

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, columns = self.reader.shape
        return (*leading, columns, rows)

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.reader.read(rows, allocate).transpose(-1, -2)


@dataclass(frozen=True)
class RowsReader(WrappedReader):
    """Some rows of a matrix, in the order given."""

    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.reader.shape[1:])

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        chosen = self.rows[rows]
        matrix = allocate((len(chosen), *self.shape[1:]), dtype=self.dtype)
        for row, index in zip(matrix, chosen, strict=True):
            row.copy_(self.reader.read(slice(index, index + 1), allocate_anew)[0])
        return matrix


@dataclass(frozen=True)
class StackedReader:
    """A stack of matrices [N, R, C], each stored as tensors [Ri, C] whose rows follow one another.

    Args:
        matrices: the tensors of each matrix. All matrices have the same shape.
    """

    matrices: Sequence[Sequence[TensorReader]]

    @property
    def file(self) -> Path:
        return self.matrices[0][0].file

    @property
    def shape(self) -> tuple[int, ...]:
        parts = self.matrices[0]
        return (len(self.matrices), sum(part.shape[0] for part in parts), parts[0].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return reduce(torch.promote_types, (part.dtype for parts in self.matrices for part in parts))

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        stack = allocate((rows.stop - rows.start, *self.shape[1:]), dtype=self.dtype)
        for matrix, parts in zip(stack, self.matrices[rows], strict=True):
            views = matrix.split([part.shape[0] for part in parts])
            for view, part in zip(views, parts, strict=True):
                _read_into(view, part)
        return stack


def _read_into(view: Tensor, reader: TensorReader) -> None:
    def allocate(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
        fits = shape == tuple(view.shape) and dtype == view.dtype
        return view if fits else allocate_anew(shape, dtype=dtype)

    tensor = reader.read(slice(0, reader.shape[0]), allocate)
    if tensor is not view:
        view.copy_(tensor)


def equal_values(first: TensorReader, second: TensorReader) -> bool:
    """Whether two tensors have the same shape and equal values, as `torch.equal` in a dtype that holds both.

    They are read some rows at a time.
    """
    if first.shape != second.shape:
        return False
    dtype = torch.promote_types(first.dtype, second.dtype)
    count = first.shape[0] if first.shape else 0
    strip = max(1, STRIP_BYTES // max(1, prod(first.shape[1:]) * dtype.itemsize))
    slices = (
        [slice(start, min(start + strip, count)) for start in range(0, count, strip)] if first.shape else [slice(0, 0)]
    )
    return all(
        torch.equal(first.read(rows, allocate_anew).to(dtype), second.read(rows, allocate_anew).to(dtype))
        for rows in slices
    )
