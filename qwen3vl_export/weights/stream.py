"""Streaming: one tensor of a checkpoint to its places in a file, some rows at a time.

Rows are read, laid out, cast or packed, written and forgotten; memory holds `SLICE_VALUES` of them whatever the tensor.
Knows offsets and layouts; nothing about graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from .layouts import Layout, Source
from .packing import TORCH

SLICE_VALUES = 4 << 20  # read at once: 16 MiB of float32
TURN_VALUES = 12 << 20  # read at once where rows become columns: each column is one write, 2B's weights are one slice
PACK_VALUES = 1 << 18  # packed at once: 1 MiB of float32 and its copies stay in a processor's cache
COLUMNS = ("Transpose", (1, 0))


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


def stream(
    checkpoint: Checkpoint, name: str, source: Source, regions: Mapping[str, Region], progress: Callable[[int], None]
) -> float | None:
    """Write one tensor as `source` says.

    Args:
        name: the checkpoint's tensor.
        regions: for each part of the source's packing its place; the only key is "" without a packing.
        progress: called with the bytes of each write.

    Returns:
        Relative L2 error of the quantized values; None if they are not quantized.
    """
    if source.packing is None:
        for first, rows in _slices(checkpoint, name, source.layout):
            progress(_write(regions[""], first, rows))
        return None
    squares = torch.zeros(2, dtype=torch.float64)
    for first, stack in _slices(checkpoint, name, source.layout):
        rows = stack.flatten(0, -2)  # a stack of matrices is one row after another
        first *= len(rows) // len(stack)
        count = len(rows) if source.packing.columns else max(1, PACK_VALUES // rows.shape[1])
        for start in range(0, len(rows), count):
            wide = rows[start : start + count].to(torch.float32)
            arrays, restored = source.packing.pack(wide, first + start)
            squares += torch.stack([(restored - wide).square().sum(), wide.square().sum()]).to(torch.float64)
            for part, region in regions.items():
                progress(_write(region, first + start, arrays[part]))
    return float((squares[0] / squares[1].clamp(min=1e-30)).sqrt())


def _slices(checkpoint: Checkpoint, name: str, layout: Layout) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows) of a tensor, laid out; a final `COLUMNS` is left to `_write`."""
    turned = bool(layout) and layout[-1] == COLUMNS
    steps = layout[:-1] if turned else layout
    shape = checkpoint.tensors[name].shape
    rows_apart = all(argument[0] == (shape[0] if op == "Reshape" else 0) for op, argument in steps)
    values = TURN_VALUES if turned else SLICE_VALUES
    count = max(1, values // max(1, prod(shape[1:]))) if rows_apart else shape[0]
    for first in range(0, shape[0], count):
        rows = checkpoint.read(name, slice(first, min(first + count, shape[0])))
        for op, argument in steps:
            if op == "Transpose":
                rows = rows.permute(argument)
            else:
                rows = rows.reshape((len(rows), *argument[1:]) if rows_apart else argument)
        yield first, rows


def _write(region: Region, first: int, rows: Tensor) -> int:
    """Write rows, or columns of a matrix, that start at index `first`; returns their bytes."""
    dtype = TORCH.get(region.dtype)
    rows = rows if dtype is None else rows.to(dtype)
    if not region.columns:
        data = _bytes(rows)
        _write_at(region.descriptor, data, region.offset + first * (len(data) // len(rows)))
        return len(data)
    turned = _bytes(rows.t())
    width, size = rows.shape[0] * rows.element_size(), rows.element_size()
    stride = region.shape[1] * size
    if width == stride:
        _write_at(region.descriptor, turned, region.offset)
        return len(turned)
    for index in range(region.shape[0]):
        place = region.offset + index * stride + first * size
        _write_at(region.descriptor, turned[index * width : (index + 1) * width], place)
    return len(turned)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)  # a last axis of one value may have any stride
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return array.data.cast("B")


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
