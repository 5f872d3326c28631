"""The results of calibration on disk: quantized weights, written layer by layer and read by `weights/`.

One file for each array of each weight, in a directory of the build's own. Knows arrays and files; nothing about how
the integers were computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from ..weights.blockwise import PackedRows, unpack_rows
from ..weights.packing import DATA, SCALES, ZERO_POINTS, Blockwise

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

    def count(self, parameter: str) -> int:
        """Rows of a weight, those of all matrices of a stack."""
        return len(np.load(self.path(parameter, SCALES), mmap_mode="r"))

    def read(self, parameter: str, first: int, count: int, bits: int, width: int) -> PackedRows:
        """`count` rows of a weight [N, width], from row `first` on."""

        def load(part: str) -> Tensor:
            stored = np.load(self.path(parameter, part), mmap_mode="r")
            return torch.from_numpy(np.array(stored[first : first + count]))

        zero_points = load(ZERO_POINTS) if self.path(parameter, ZERO_POINTS).is_file() else None
        return unpack_rows(load(DATA), load(SCALES), zero_points, bits, width)


@dataclass(frozen=True)
class CalibratedRows:
    """The rows of a weight that calibration has quantized."""

    results: CalibrationResults
    parameter: str

    @cached_property
    def count(self) -> int:
        return self.results.count(self.parameter)

    def read(self, index: Tensor, packing: Blockwise, width: int) -> PackedRows:
        start, end = int(index.min()), int(index.max()) + 1
        return self.results.read(self.parameter, start, end - start, packing.bits, width).select(index - start)
