"""Tensors with an adapter merged in, some rows at a time: no more memory than the rows, and the adapter's factors.

The arithmetic is PEFT's, down to the rounding: factors are multiplied in float32, and the sum is rounded to the dtype
of the base. For tables and for parameters that are targeted directly, PEFT also rounds the product before it is added.
Source: Hu et al., LoRA, arXiv:2106.09685; PEFT, `get_delta_weight` and `merge` of `tuners/lora/layer.py`.

Legend: r rank, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ....hash_cache import identity
from ..safetensors_file import StoredTensor
from ..tensors import Allocator, TensorReader, WrappedReader

CACHED_FACTORS = 4  # read whole for every strip of rows: as many as two workers use


class Delta(Protocol):
    """What an adapter adds to a tensor."""

    def read(self, rows: slice) -> Tensor:
        """Rows of it, float32."""


@dataclass(frozen=True)
class MatrixDelta:
    """scale * B @ A, of a matrix or a convolution [out, …]: A is [r, …], B is [out, r]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    def read(self, rows: slice) -> Tensor:
        return _read(self.b, rows).flatten(1) @ _whole(self.a).float().flatten(1) * self.scale


@dataclass(frozen=True)
class TableDelta:
    """scale * (B @ A) transposed, of a table [rows, width]: A is [r, rows], B is [width, r]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    def read(self, rows: slice) -> Tensor:
        return (_whole(self.b).float() @ _whole(self.a)[:, rows].float()).T * self.scale


@dataclass(frozen=True)
class ExpertsDelta:
    """scale * B[e] @ A[e], of stacked matrices [E, out, in]: A is [E * r, in], B is [out, r * E], experts innermost."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    rank: int

    def read(self, rows: slice) -> Tensor:
        a = _read(self.a, slice(rows.start * self.rank, rows.stop * self.rank)).reshape(-1, self.rank, self.a.shape[1])
        b = _whole(self.b).reshape(self.b.shape[0], self.rank, -1)[:, :, rows].permute(2, 0, 1).float()
        return torch.bmm(b, a) * self.scale


@dataclass(frozen=True)
class VectorDelta:
    """scale * the bias of B, of a bias."""

    b: StoredTensor
    scale: float

    def read(self, rows: slice) -> Tensor:
        return _read(self.b, rows) * self.scale


@dataclass(frozen=True)
class AdaptedReader(WrappedReader):
    """A tensor plus an adapter's delta, rounded to the tensor's dtype.

    Attributes:
        rounded: the delta is rounded to that dtype before it is added.
    """

    delta: Delta
    rounded: bool = False

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        tensor = self.reader.read(rows, allocate)
        delta = self.delta.read(rows).reshape(tensor.shape)
        return tensor.add_(delta.to(self.dtype) if self.rounded else delta)  # added in the wider of both dtypes


@dataclass(frozen=True)
class CastReader:
    """A tensor in another dtype."""

    reader: TensorReader
    dtype: torch.dtype

    @property
    def file(self) -> Path:
        return self.reader.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.reader.read(rows, allocate).to(self.dtype)


@dataclass(frozen=True)
class ReplacedRowsReader(WrappedReader):
    """A table some of whose rows are stored elsewhere; of two for one row the later counts."""

    indices: tuple[int, ...]
    replacements: StoredTensor  # [len(indices), width]

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        tensor = self.reader.read(rows, allocate)
        for place, index in enumerate(self.indices):
            if rows.start <= index < rows.stop:
                tensor[index - rows.start] = _read(self.replacements, slice(place, place + 1))[0]
        return tensor


def _read(stored: StoredTensor, rows: slice) -> Tensor:
    """Rows of a factor, float32."""
    into = torch.empty((rows.stop - rows.start, *stored.shape[1:]), dtype=stored.dtype)
    return stored.read(rows, into).float()


def _whole(stored: StoredTensor) -> Tensor:
    """All of a factor, in its dtype."""
    return _read_whole(stored, tuple(identity(stored.file)))


@lru_cache(maxsize=CACHED_FACTORS)
def _read_whole(stored: StoredTensor, file_identity: object) -> Tensor:
    return stored.read(slice(0, stored.shape[0]), torch.empty(stored.shape, dtype=stored.dtype))
