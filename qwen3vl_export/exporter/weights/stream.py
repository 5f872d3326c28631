"""Streaming: a piece of a checkpoint's tensor to its place in a file, one strip of rows at a time.

The strips of a piece are read from the checkpoint, transformed, cast or packed, and written. Rows that become columns
are gathered first, so that each column of the piece is one write. Strips pass through buffers that each worker keeps:
they stay in its processor's cache, and no memory is allocated for every strip. Knows offsets and transforms; nothing
about graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ...errors import BuildError
from ..checkpoint import Checkpoint
from .buffers import BUFFERS
from .inputs import Source, WeightTransform
from .packing import TORCH_DTYPES

PIECE_VALUES = 12 << 20  # of a worker's turn, all gathered if they are transposed: 2B's weights are one piece each
STRIP_VALUES = 1 << 19  # read, cast or packed at once: 2 MiB of float32


@dataclass(frozen=True)
class Destination:
    """Where one array is written: an open file, an offset, and the array's shape and dtype.

    Attributes:
        transposed: the checkpoint's rows are columns of the array.
        file: the file's name.
    """

    descriptor: int
    offset: int
    shape: tuple[int, ...]
    dtype: ir.DataType
    transposed: bool = False
    file: str = ""

    @property
    def length(self) -> int:
        """Bytes."""
        return -(-prod(self.shape) * self.dtype.bitwidth // 8)


@dataclass
class ErrorSums:
    """Sums of squares over a weight's values, which its relative error follows from."""

    error: float = 0.0
    weight: float = 0.0

    def add(self, sums: ErrorSums) -> None:
        self.error += sums.error
        self.weight += sums.weight

    @property
    def relative(self) -> float:
        """Relative L2 error."""
        return float((self.error / max(self.weight, 1e-30)) ** 0.5)


def split_pieces(shape: tuple[int, ...], transform: WeightTransform) -> list[slice]:
    """The rows of each piece of a tensor; one piece if the transform mixes rows."""
    if not _keeps_rows(shape, transform):
        return [slice(0, shape[0])]
    count = max(1, PIECE_VALUES // max(1, prod(shape[1:])))
    return [slice(first, min(first + count, shape[0])) for first in range(0, shape[0], count)]


def rows_per_read(shape: tuple[int, ...], transform: WeightTransform) -> int:
    """Rows of a tensor that are read at once: a strip, or one row that is larger; all if the transform mixes rows."""
    return max(1, STRIP_VALUES // max(1, prod(shape[1:]))) if _keeps_rows(shape, transform) else shape[0]


def stream_piece(
    checkpoint: Checkpoint,
    name: str,
    source: Source,
    destinations: Mapping[str, Destination],
    piece: slice,
    progress: Callable[[int], None],
    above: int = 0,
) -> ErrorSums:
    """Write one piece of a tensor, transformed and packed as `source` describes.

    Args:
        name: the checkpoint's tensor.
        destinations: by part of the source's packing; the only key is "" without a packing.
        piece: one of the tensor's `split_pieces`.
        progress: called with the bytes of each write.
        above: rows of the destination above the tensor's own, where several tensors are fused.

    Returns:
        The error of quantization; zeros if the values are only cast.

    Raises:
        BuildError: a packed array does not have the dtype that it is stored in.
    """
    sums = ErrorSums()
    gathered: dict[str, Tensor] = {}
    for first, rows in _read_strips(checkpoint, name, source, piece):
        arrays = _convert(rows, above + first, source, destinations, sums)
        for part, destination in destinations.items():
            if not destination.transposed:
                progress(_write_rows(destination, above + first, arrays[part]))
                continue
            if part not in gathered:
                width = min(piece.stop - piece.start, destination.shape[1])
                gathered[part] = BUFFERS.get(f"gathered {part}", (destination.shape[0], width), arrays[part].dtype)
            _transpose_into(gathered[part][:, first - piece.start :][:, : len(rows)], arrays[part])
    for part, columns in gathered.items():
        progress(_write_columns(destinations[part], above + piece.start, columns))
    return sums


def _keeps_rows(shape: tuple[int, ...], transform: WeightTransform) -> bool:
    """Whether a transform leaves every row of the tensor in its place."""
    return all(argument[0] == (shape[0] if op == "Reshape" else 0) for op, argument in transform)


def _read_strips(checkpoint: Checkpoint, name: str, source: Source, piece: slice) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows [n, width]) of a piece, scaled and transformed."""
    shape, transform = checkpoint.tensors[name].shape, source.read_transform
    keeps_rows, count = _keeps_rows(shape, transform), rows_per_read(shape, transform)
    for start in range(piece.start, piece.stop, count):
        tensor = checkpoint.read(name, slice(start, min(start + count, piece.stop)), partial(BUFFERS.get, "read"))
        if source.factors is not None:
            tensor = source.factors.scale(tensor, start)
        for op, argument in transform:
            if op == "Transpose":
                tensor = tensor.permute(argument)
            else:
                tensor = tensor.reshape((len(tensor), *argument[1:]) if keeps_rows else argument)
        if tensor.ndim == 1:
            tensor = tensor[:, None]
        first = start * prod(tensor.shape[1:-1])
        if tensor.is_contiguous():
            tensor = tensor.flatten(0, -2)  # the rows of a stack of matrices follow one another
        for rows in tensor.reshape(-1, *tensor.shape[-2:]):
            for strip in rows.split(max(1, STRIP_VALUES // rows.shape[1])):
                yield first, strip
                first += len(strip)


def _convert(
    rows: Tensor, first: int, source: Source, destinations: Mapping[str, Destination], sums: ErrorSums
) -> Mapping[str, Tensor]:
    """The stored arrays of a strip, by part, valid until the next strip. Adds the error of quantization to `sums`.

    Raises:
        BuildError: an array does not have the dtype that it is stored in.
    """
    if not rows.is_contiguous():  # transposing and casting in one step is slow
        rows = BUFFERS.get("contiguous", tuple(rows.shape), rows.dtype).copy_(rows)
    if source.packing is None:
        dtype = TORCH_DTYPES.get(destinations[""].dtype, rows.dtype)
        if dtype == torch.float16 != rows.dtype:
            rows = _cast(rows, torch.float32)  # from bfloat16, torch casts faster in two steps than in one
        return {"": _cast(rows, dtype)}
    wide = _cast(rows, torch.float32)
    arrays, dequantized = source.packing.pack(wide, first)
    for part, destination in destinations.items():
        if TORCH_DTYPES.get(destination.dtype, arrays[part].dtype) != arrays[part].dtype:
            mismatch = f"{part} are packed as {arrays[part].dtype} and stored as {destination.dtype}"
            raise BuildError(f"{source.parameter}: {mismatch}", "This is a bug; please report it")
    sums.add(ErrorSums(float((dequantized - wide).square().sum()), float(wide.square().sum())))
    return arrays


def _cast(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows themselves if they have that dtype, or a copy in a buffer."""
    return rows if rows.dtype == dtype else BUFFERS.get(f"cast {dtype}", tuple(rows.shape), dtype).copy_(rows)


def _transpose_into(columns: Tensor, rows: Tensor) -> None:
    """Copy rows [n, K] into columns [K, n] of a larger matrix, through a contiguous one: torch transposes into that
    much faster."""
    columns.copy_(BUFFERS.get("transposed", tuple(columns.shape), rows.dtype).copy_(rows.t()))


def _write_rows(destination: Destination, first: int, rows: Tensor) -> int:
    """Write rows that start at index `first`; returns their bytes."""
    data = _as_bytes(rows)
    _write_at(destination.descriptor, data, destination.offset + first * (len(data) // len(rows)))
    return len(data)


def _write_columns(destination: Destination, first: int, columns: Tensor) -> int:
    """Write columns of a matrix that start at index `first`; returns their bytes."""
    data, size = _as_bytes(columns), columns.element_size()
    width, stride = columns.shape[1] * size, destination.shape[1] * size
    runs = 1 if width == stride else destination.shape[0]  # all columns of a matrix are one run of bytes
    length = len(data) // runs
    for index in range(runs):
        offset = destination.offset + index * stride + first * size
        _write_at(destination.descriptor, data[index * length :][:length], offset)
    return len(data)


def _as_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)  # a last axis of one value may have any stride
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return array.data.cast("B")


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
