"""Streaming: a piece of a checkpoint's tensor to its places in a file, a strip of rows at a time.

The strips of a piece are read from the checkpoint, laid out, cast or packed, and written. Rows that become columns are
gathered first, so that each column of the piece is one write. What strips pass through are buffers that each worker
keeps: they stay in its processor's cache, and the system need not find new memory for every one. Knows offsets and
layouts; nothing about graphs.
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
from .inputs import Layout, Source
from .packing import TORCH

PIECE_VALUES = 12 << 20  # one worker's turn, gathered at once if turned: 2B's weights are one piece
STRIP_VALUES = 1 << 19  # read, cast or packed at once: 2 MiB of float32


@dataclass(frozen=True)
class Region:
    """Where one array goes: a file (open, and its name), an offset, and the array's shape and dtype."""

    descriptor: int
    offset: int
    shape: tuple[int, ...]
    dtype: ir.DataType
    columns: bool = False
    file: str = ""

    @property
    def length(self) -> int:
        """Bytes."""
        return -(-prod(self.shape) * self.dtype.bitwidth // 8)


@dataclass
class Squares:
    """Sums over a weight's values, from which its relative error follows."""

    changed: float = 0.0
    whole: float = 0.0

    def add(self, other: Squares) -> None:
        self.changed += other.changed
        self.whole += other.whole

    @property
    def error(self) -> float:
        """Relative L2 error."""
        return float((self.changed / max(self.whole, 1e-30)) ** 0.5)


def pieces(shape: tuple[int, ...], layout: Layout) -> list[slice]:
    """The rows of each piece of a tensor; one piece if a layout mixes rows."""
    if not _rows_apart(shape, layout):
        return [slice(0, shape[0])]
    count = max(1, PIECE_VALUES // max(1, prod(shape[1:])))
    return [slice(first, min(first + count, shape[0])) for first in range(0, shape[0], count)]


def rows_at_once(shape: tuple[int, ...], layout: Layout) -> int:
    """How many rows of a tensor are read at once: a strip, or one row that is larger; all if a layout mixes rows."""
    return max(1, STRIP_VALUES // max(1, prod(shape[1:]))) if _rows_apart(shape, layout) else shape[0]


def stream(
    checkpoint: Checkpoint,
    name: str,
    source: Source,
    regions: Mapping[str, Region],
    piece: slice,
    progress: Callable[[int], None],
) -> Squares:
    """Write one piece of a tensor as `source` says.

    Args:
        name: the checkpoint's tensor.
        regions: for each part of the source's packing its place; the only key is "" without a packing.
        piece: one of the tensor's `pieces`.
        progress: called with the bytes of each write.

    Returns:
        What quantizing changed; zeros if the values are only cast.
    """
    squares = Squares()
    gathered: dict[str, Tensor] = {}
    for first, rows in _strips(checkpoint, name, source.layout, piece):
        arrays = _arrays(rows, first, source, regions, squares)
        for part, region in regions.items():
            if not region.columns:
                progress(_write(region, first, arrays[part]))
                continue
            if part not in gathered:
                width = min(piece.stop - piece.start, region.shape[1])
                gathered[part] = BUFFERS.get(f"gathered {part}", (region.shape[0], width), arrays[part].dtype)
            _turn(arrays[part], gathered[part][:, first - piece.start :][:, : len(rows)])
    for part, columns in gathered.items():
        progress(_write_columns(regions[part], piece.start, columns))
    return squares


def _rows_apart(shape: tuple[int, ...], layout: Layout) -> bool:
    """Whether a layout leaves every row of the tensor in its place."""
    return all(argument[0] == (shape[0] if op == "Reshape" else 0) for op, argument in layout)


def _strips(checkpoint: Checkpoint, name: str, layout: Layout, piece: slice) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows [n, width]) of a piece, laid out."""
    shape = checkpoint.tensors[name].shape
    apart, count = _rows_apart(shape, layout), rows_at_once(shape, layout)
    for start in range(piece.start, piece.stop, count):
        tensor = checkpoint.read(name, slice(start, min(start + count, piece.stop)), partial(BUFFERS.get, "read"))
        for op, argument in layout:
            if op == "Transpose":
                tensor = tensor.permute(argument)
            else:
                tensor = tensor.reshape((len(tensor), *argument[1:]) if apart else argument)
        if tensor.ndim == 1:
            tensor = tensor[:, None]
        first = start * prod(tensor.shape[1:-1])
        if tensor.is_contiguous():
            tensor = tensor.flatten(0, -2)  # a stack of matrices is one row after another
        for rows in tensor.reshape(-1, *tensor.shape[-2:]):
            for strip in rows.split(max(1, STRIP_VALUES // rows.shape[1])):
                yield first, strip
                first += len(strip)


def _arrays(
    rows: Tensor, first: int, source: Source, regions: Mapping[str, Region], squares: Squares
) -> Mapping[str, Tensor]:
    """What is stored of a strip, by part; good until the next strip. Adds to `squares` what quantizing changed.

    Raises:
        BuildError: an array is not of the dtype that it is stored in.
    """
    if not rows.is_contiguous():
        rows = BUFFERS.get("straight", tuple(rows.shape), rows.dtype).copy_(rows)  # turned and cast in one is slow
    if source.packing is None:
        dtype = TORCH.get(regions[""].dtype, rows.dtype)
        if dtype == torch.float16 != rows.dtype:
            rows = _cast(rows, torch.float32)  # from bfloat16, torch does both steps faster than the one
        return {"": _cast(rows, dtype)}
    wide = _cast(rows, torch.float32)
    arrays, restored = source.packing.pack(wide, first)
    for part, region in regions.items():
        if TORCH.get(region.dtype, arrays[part].dtype) != arrays[part].dtype:
            what = f"{source.parameter}: {part} are packed as {arrays[part].dtype} and stored as {region.dtype}"
            raise BuildError(what, "This is a bug; please report it")
    squares.add(Squares(float((restored - wide).square().sum()), float(wide.square().sum())))
    return arrays


def _cast(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows themselves, or a buffer's copy in that dtype."""
    return rows if rows.dtype == dtype else BUFFERS.get(f"cast {dtype}", tuple(rows.shape), dtype).copy_(rows)


def _turn(rows: Tensor, columns: Tensor) -> None:
    """Rows [n, K] into columns [K, n] of a larger matrix, by way of a whole one: torch turns into those much faster."""
    columns.copy_(BUFFERS.get("turned", tuple(columns.shape), rows.dtype).copy_(rows.t()))


def _write(region: Region, first: int, rows: Tensor) -> int:
    """Write rows that start at index `first`; returns their bytes."""
    data = _bytes(rows)
    _write_at(region.descriptor, data, region.offset + first * (len(data) // len(rows)))
    return len(data)


def _write_columns(region: Region, first: int, columns: Tensor) -> int:
    """Write columns of a matrix that start at index `first`; returns their bytes."""
    data, size = _bytes(columns), columns.element_size()
    width, stride = columns.shape[1] * size, region.shape[1] * size
    runs = 1 if width == stride else region.shape[0]  # all columns of it are one run
    length = len(data) // runs
    for index in range(runs):
        _write_at(region.descriptor, data[index * length :][:length], region.offset + index * stride + first * size)
    return len(data)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)  # a last axis of one value may have any stride
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return array.data.cast("B")


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
