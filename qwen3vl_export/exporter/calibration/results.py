"""The results of calibration on disk: quantized weights, written layer by layer and read by `weights/`.

One file for each array of each weight, in a directory of the build's own. Knows arrays and files; nothing about how
the integers were computed.
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

from ..weights.blockwise import PackedRows, unpack_rows
from ..weights.inputs import SOURCE, WeightTransform, source_of, weight_inputs
from ..weights.packing import DATA, SCALES, ZERO_POINTS, Blockwise, PackedPart

NUMPY_DTYPES = {ir.DataType.UINT8: np.uint8, ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


@dataclass(frozen=True)
class CalibrationResults:
    """Quantized weights by parameter, in `directory`."""

    directory: Path

    def path(self, parameter: str, part: str) -> Path:
        return self.directory / f"{parameter}.{part}.npy"

    def create(self, parameter: str, rows: int, width: int, packing: Blockwise) -> None:
        """Allocate the files of a weight [rows, width]."""
        for name, part in replace(packing, signed=False).parts(rows, width).items():
            open_memmap(self.path(parameter, name), "w+", NUMPY_DTYPES[part.dtype], part.shape).flush()

    def write(self, parameter: str, first: int, packed: PackedRows) -> None:
        """Store rows of a weight, from row `first` on."""
        arrays = {DATA: packed.data, SCALES: packed.scales, ZERO_POINTS: packed.zero_points}
        for name, values in arrays.items():
            if values is not None:
                stored: Any = np.load(self.path(parameter, name), mmap_mode="r+")
                stored[first : first + len(values)] = values.numpy()
                stored.flush()

    def read(self, parameter: str, first: int, count: int, bits: int, width: int) -> PackedRows:
        """`count` rows of a weight [N, width], from row `first` on."""

        def load(part: str) -> Tensor:
            stored = np.load(self.path(parameter, part), mmap_mode="r")
            return torch.from_numpy(np.array(stored[first : first + count]))

        zero_points = load(ZERO_POINTS) if self.path(parameter, ZERO_POINTS).is_file() else None
        return unpack_rows(load(DATA), load(SCALES), zero_points, bits, width)


@dataclass(frozen=True)
class CalibratedPacking:
    """The packing of a weight that calibration has quantized.

    Attributes:
        blockwise: how it is quantized.
        results: hold its integers.
        row_order: for a stack, which of the checkpoint's rows each row of a matrix is; empty if they keep their order.
    """

    transposed_parts: ClassVar[tuple[str, ...]] = ()

    blockwise: Blockwise
    results: CalibrationResults
    parameter: str
    row_order: tuple[int, ...] = ()

    def parts(self, rows: int, width: int) -> Mapping[str, PackedPart]:
        return self.blockwise.parts(rows, width)

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        count, width = rows.shape
        index = torch.arange(first, first + count)
        if self.row_order:
            period = len(self.row_order)
            index = index - index % period + torch.tensor(self.row_order)[index % period]
        start, end = int(index.min()), int(index.max()) + 1
        packed = self.results.read(self.parameter, start, end - start, self.blockwise.bits, width)
        return self.blockwise.arrays(packed.select(index - start) if self.row_order else packed, width)


def use_results(model: ir.Model, results: CalibrationResults) -> ir.Model:
    """Replace every blockwise packing of a skeleton by one that reads the integers from `results`."""
    for value in weight_inputs(model):
        source = source_of(value)
        if isinstance(source.packing, Blockwise):
            row_order = find_row_order(source.transform)
            packing = CalibratedPacking(source.packing, results, source.parameter, row_order)
            value.meta[SOURCE] = replace(source, packing=packing)
    return model


def find_row_order(transform: WeightTransform) -> tuple[int, ...]:
    """How a transform reorders the rows of each matrix of a stack [E, N, K]; empty if it does not, or without a
    stack."""
    if not transform or len(transform[-1][1]) != 3:
        return ()
    _, count, width = transform[-1][1]
    rows = torch.arange(count)[None, :, None].expand(1, count, width)
    for op, argument in transform:
        rows = rows.permute(argument) if op == "Transpose" else rows.reshape(1, *argument[1:])
    return tuple(rows[0, :, 0].tolist())
