"""How a checkpoint's tensors are read: some rows at a time, as transformers' modules hold them.

A `TensorReader` is a tensor without its values. Readers wrap one another: a stored tensor, one whose axes the file has
in another order, one restored from a quantized format. Knows nothing about names or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .safetensors_file import StoredTensor


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
class TransposedReader:
    """A tensor whose last two axes are stored in the opposite order."""

    reader: TensorReader

    @property
    def file(self) -> Path:
        return self.reader.file

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, columns = self.reader.shape
        return (*leading, columns, rows)

    @property
    def dtype(self) -> torch.dtype:
        return self.reader.dtype

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.reader.read(rows, allocate).transpose(-1, -2)
