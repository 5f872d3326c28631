"""What calibration found, on disk between the two: quantized weights, written layer by layer, read back by `weights/`.

One file for each array of each weight, in a directory of the build's own. Knows arrays and files; nothing about how
they were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from ..weights.blockwise import Blocks, from_stored
from ..weights.inputs import SOURCE, Layout, source_of, weight_inputs
from ..weights.packing import DATA, SCALES, ZERO_POINTS, Blockwise, Part

NUMPY = {ir.DataType.UINT8: np.uint8, ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


@dataclass(frozen=True)
class Results:
    """Quantized weights by parameter, in `directory`."""

    directory: Path

    def path(self, parameter: str, part: str) -> Path:
        return self.directory / f"{parameter}.{part}.npy"

    def create(self, parameter: str, rows: int, width: int, packing: Blockwise) -> None:
        """Room for a weight [rows, width]."""
        for name, part in replace(packing, signed=False).parts(rows, width).items():
            open_memmap(self.path(parameter, name), "w+", NUMPY[part.dtype], part.shape).flush()

    def write(self, parameter: str, first: int, blocks: Blocks) -> None:
        """The rows of a weight that begin with row `first`."""
        arrays = {DATA: blocks.data, SCALES: blocks.scales, ZERO_POINTS: blocks.zero_points}
        for name, values in arrays.items():
            if values is not None:
                stored: Any = np.load(self.path(parameter, name), mmap_mode="r+")
                stored[first : first + len(values)] = values.numpy()
                stored.flush()

    def read(self, parameter: str, first: int, count: int, bits: int, width: int) -> Blocks:
        """`count` rows [count, width] of a weight from row `first` on."""

        def part(name: str) -> Tensor:
            stored = np.load(self.path(parameter, name), mmap_mode="r")
            return torch.from_numpy(np.array(stored[first : first + count]))

        own = self.path(parameter, ZERO_POINTS).is_file()
        return from_stored(part(DATA), part(SCALES), part(ZERO_POINTS) if own else None, bits, width)


@dataclass(frozen=True)
class Calibrated:
    """The packing of a weight that calibration has quantized: `blocks` says how, `results` hold the integers."""

    columns: ClassVar[tuple[str, ...]] = ()

    blocks: Blockwise
    results: Results
    parameter: str
    order: tuple[int, ...] = ()  # of each matrix of a stack: which row of the checkpoint's comes first, second, …

    def parts(self, rows: int, width: int) -> Mapping[str, Part]:
        return self.blocks.parts(rows, width)

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        count, width = rows.shape
        wanted = torch.arange(first, first + count)
        if self.order:
            each = len(self.order)
            wanted = wanted - wanted % each + torch.tensor(self.order)[wanted % each]
        start, end = int(wanted.min()), int(wanted.max()) + 1
        found = self.results.read(self.parameter, start, end - start, self.blocks.bits, width)
        return self.blocks.arrays(found.rows(wanted - start) if self.order else found, width)


def read_back(model: ir.Model, results: Results) -> ir.Model:
    """Every weight of a skeleton that is packed in blocks: its integers are those that calibration found."""
    for value in weight_inputs(model):
        source = source_of(value)
        if isinstance(source.packing, Blockwise):
            packing = Calibrated(source.packing, results, source.parameter, order_of(source.layout))
            value.meta[SOURCE] = replace(source, packing=packing)
    return model


def order_of(layout: Layout) -> tuple[int, ...]:
    """How a layout turns the rows of each matrix of a stack [E, N, K]; empty if it leaves them or there is no stack."""
    if not layout or len(layout[-1][1]) != 3:
        return ()
    _, count, width = layout[-1][1]
    rows = torch.arange(count)[None, :, None].expand(1, count, width)
    for op, argument in layout:
        rows = rows.permute(argument) if op == "Transpose" else rows.reshape(1, *argument[1:])
    return tuple(rows[0, :, 0].tolist())
