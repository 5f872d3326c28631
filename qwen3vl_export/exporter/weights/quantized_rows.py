"""Weights that are quantized already: their packing reads integers instead of rounding values.

Calibration has rounded them, or the checkpoint holds them as integers. Knows rows and packings; nothing about how the
integers came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from ..checkpoint.names import members_of
from .blockwise import PackedRows
from .inputs import SOURCE, WeightTransform, source_of, weight_inputs
from .packing import Blockwise, PackedPart


class QuantizedRows(Protocol):
    """Where the integers of a weight are; instances are frozen and hashable."""

    @property
    def count(self) -> int:
        """Rows of the weight, those of all matrices of a stack."""

    def read(self, index: Tensor, packing: Blockwise, width: int) -> PackedRows:
        """Rows of a weight [N, width], or of a stack of matrices [E, N, width] whose rows follow one another.

        Args:
            index: int64 [n], the rows as the checkpoint's tensor has them, in the order they are returned.
            packing: how they are quantized.
        """


@dataclass(frozen=True)
class QuantizedPacking:
    """The packing of a weight that is quantized already.

    Attributes:
        blockwise: how it is quantized.
        rows: hold its integers.
        row_order: for a stack, which of the checkpoint's rows each row of a matrix is; empty if they keep their order.
    """

    transposed_parts: ClassVar[tuple[str, ...]] = ()

    blockwise: Blockwise
    rows: QuantizedRows
    row_order: tuple[int, ...] = ()

    def parts(self, rows: int, width: int) -> Mapping[str, PackedPart]:
        return self.blockwise.parts(rows, width)

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        count, width = rows.shape
        index = torch.arange(first, first + count)
        if self.row_order:
            period = len(self.row_order)
            index = index - index % period + torch.tensor(self.row_order)[index % period]
        return self.blockwise.arrays(self.rows.read(index, self.blockwise, width), width)


@dataclass(frozen=True)
class FusedRows:
    """The integers of several weights of one width, whose rows follow one another."""

    members: tuple[QuantizedRows, ...]

    @property
    def count(self) -> int:
        return sum(rows.count for rows in self.members)

    def read(self, index: Tensor, packing: Blockwise, width: int) -> PackedRows:
        """As `QuantizedRows.read`, of rows of one member only: weights are written one member at a time."""
        first = 0
        for rows in self.members:
            if int(index.max()) < first + rows.count:
                return rows.read(index - first, packing, width)
            first += rows.count
        raise AssertionError(f"row {int(index.max())} of {first}")


def use_rows(model: ir.Model, rows_of: Callable[[str], QuantizedRows]) -> ir.Model:
    """Replace every blockwise packing of a skeleton by one that reads the integers of its parameters."""
    for value in weight_inputs(model):
        source = source_of(value)
        if isinstance(source.packing, Blockwise):
            rows, row_order = tuple(map(rows_of, members_of(source.parameter))), find_row_order(source.transform)
            whole = FusedRows(rows) if len(rows) > 1 else rows[0]
            value.meta[SOURCE] = replace(source, packing=QuantizedPacking(source.packing, whole, row_order))
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
