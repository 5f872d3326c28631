"""Packings: how one weight's rows become the arrays that a quantized operator reads.

A packing says which arrays (parts) there are, their shapes and dtypes, and turns rows into them; any slice of rows can
be packed by itself, so a weight never has to be in memory whole. Knows tensors; nothing about graphs or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from .blockwise import Blocks, quantize_rows

DATA, SCALES, ZERO_POINTS = "quantized", "scales", "zero_points"
TORCH = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class Part:
    """One array of a packing."""

    shape: tuple[int, ...]
    dtype: ir.DataType


class Packing(Protocol):
    """What `weights/` asks of a packing; instances are frozen and hashable.

    `columns` names the parts whose columns are the weight's rows.
    """

    columns: ClassVar[tuple[str, ...]]

    def parts(self, rows: int, width: int) -> Mapping[str, Part]:
        """The arrays of a weight [rows, width], in the order they are stored."""

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        """The arrays of float32 rows [n, K], and the float32 rows [n, K] they stand for.

        Args:
            first: which row of the whole weight `rows` begin with.
        """


@dataclass(frozen=True)
class Blockwise:
    """Integers of 4 or 8 bits in blocks along a row; see `weights/blockwise.py`.

    Attributes:
        scales: dtype of the scales, that of the operator's activations.
        signed: two's complement [rows, width] for the standard `DequantizeLinear`, which takes symmetric blocks without
            zero points that way; otherwise the bytes of `MatMulNBits`.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    bits: int
    block_size: int
    symmetric: bool
    search: bool
    scales: ir.DataType
    signed: bool = False

    def parts(self, rows: int, width: int) -> Mapping[str, Part]:
        blocks = -(-width // self.block_size)
        if self.signed:
            data = Part((rows, width), ir.DataType.INT8 if self.bits == 8 else ir.DataType.INT4)
        else:
            data = Part((rows, blocks, self.block_size * self.bits // 8), ir.DataType.UINT8)
        parts = {DATA: data, SCALES: Part((rows, blocks), self.scales)}
        if not self.symmetric:
            parts[ZERO_POINTS] = Part((rows, -(-blocks * self.bits // 8)), ir.DataType.UINT8)
        return parts

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        blocks = quantize_rows(rows, self.bits, self.block_size, self.symmetric, self.search, TORCH[self.scales])
        return self.arrays(blocks, rows.shape[1])

    def arrays(self, blocks: Blocks, width: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """What `pack` gives, for rows [n, width] that are blocks already."""
        data = blocks.data
        if self.signed:  # q - 2^(bits-1) in two's complement is q with its highest bit turned
            data = (data.flatten(1) ^ (0x80 if self.bits == 8 else 0x88))[:, : width * self.bits // 8]
        arrays = {DATA: data, SCALES: blocks.scales}
        if blocks.zero_points is not None:
            arrays[ZERO_POINTS] = blocks.zero_points
        return arrays, blocks.restored


@dataclass(frozen=True)
class PerColumn:
    """One scale for each output: int8 [K, N], symmetric; activations are quantized at run time."""

    columns: ClassVar[tuple[str, ...]] = (DATA,)

    scales: ir.DataType

    def parts(self, rows: int, width: int) -> Mapping[str, Part]:
        return {
            DATA: Part((width, rows), ir.DataType.INT8),
            SCALES: Part((rows,), self.scales),
        }

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        scales = (rows.abs().amax(1) / 127).to(TORCH[self.scales])
        wide = torch.where(scales == 0, 1.0, scales.to(torch.float32))[:, None]
        data = (rows / wide).round().clamp(-127, 127)
        return {DATA: data.to(torch.int8), SCALES: scales}, data * wide
