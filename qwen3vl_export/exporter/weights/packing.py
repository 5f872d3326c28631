"""Packings: how a weight's rows become the arrays that a quantized operator reads.

A packing names its arrays (parts), their shapes and dtypes, and converts rows into them; any slice of rows can be
packed by itself, so a weight need never be in memory whole. Knows tensors; nothing about graphs or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from .blockwise import PackedRows, quantize_nearest

DATA, SCALES, ZERO_POINTS = "quantized", "scales", "zero_points"
TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class PackedPart:
    """Shape and dtype of one array of a packing."""

    shape: tuple[int, ...]
    dtype: ir.DataType


class Packing(Protocol):
    """What `weights/` requires of a packing; instances are frozen and hashable.

    `transposed_parts` names the arrays whose columns are the weight's rows.
    """

    transposed_parts: ClassVar[tuple[str, ...]]

    def parts(self, rows: int, width: int) -> Mapping[str, PackedPart]:
        """The arrays of a weight [rows, width], in the order they are stored."""

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        """The arrays of float32 rows [n, K], and the float32 rows [n, K] they represent.

        Args:
            first: index of the first of these rows in the whole weight.
        """


@dataclass(frozen=True)
class Blockwise:
    """Integers of 4 or 8 bits in blocks along a row; see `weights/blockwise.py`.

    Attributes:
        scale_dtype: that of the operator's activations.
        signed: two's complement [rows, width] for the standard `DequantizeLinear`, which takes symmetric blocks without
            zero points in that form; otherwise the bytes of `MatMulNBits`.
    """

    transposed_parts: ClassVar[tuple[str, ...]] = ()

    bits: int
    block_size: int
    symmetric: bool
    search: bool
    scale_dtype: ir.DataType
    signed: bool = False

    def parts(self, rows: int, width: int) -> Mapping[str, PackedPart]:
        blocks = -(-width // self.block_size)
        if self.signed:
            data = PackedPart((rows, width), ir.DataType.INT8 if self.bits == 8 else ir.DataType.INT4)
        else:
            data = PackedPart((rows, blocks, self.block_size * self.bits // 8), ir.DataType.UINT8)
        parts = {DATA: data, SCALES: PackedPart((rows, blocks), self.scale_dtype)}
        if not self.symmetric:
            parts[ZERO_POINTS] = PackedPart((rows, -(-blocks * self.bits // 8)), ir.DataType.UINT8)
        return parts

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        scale_dtype = TORCH_DTYPES[self.scale_dtype]
        packed = quantize_nearest(rows, self.bits, self.block_size, self.symmetric, self.search, scale_dtype)
        return self.arrays(packed, rows.shape[1])

    def arrays(self, packed: PackedRows, width: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """What `pack` returns, for rows [n, width] that are quantized already."""
        data = packed.data
        if self.signed:  # q - 2^(bits-1) in two's complement is q with its highest bit flipped
            data = (data.flatten(1) ^ (0x80 if self.bits == 8 else 0x88))[:, : width * self.bits // 8]
        arrays = {DATA: data, SCALES: packed.scales}
        if packed.zero_points is not None:
            arrays[ZERO_POINTS] = packed.zero_points
        return arrays, packed.dequantized


@dataclass(frozen=True)
class PerColumn:
    """Symmetric int8 [K, N] with one scale for each output; activations are quantized at run time.

    Attributes:
        scale_dtype: that of the operator's activations.
    """

    transposed_parts: ClassVar[tuple[str, ...]] = (DATA,)

    scale_dtype: ir.DataType

    def parts(self, rows: int, width: int) -> Mapping[str, PackedPart]:
        return {
            DATA: PackedPart((width, rows), ir.DataType.INT8),
            SCALES: PackedPart((rows,), self.scale_dtype),
        }

    def pack(self, rows: Tensor, first: int = 0) -> tuple[Mapping[str, Tensor], Tensor]:
        scales = (rows.abs().amax(1) / 127).to(TORCH_DTYPES[self.scale_dtype])
        divisors = torch.where(scales == 0, 1.0, scales.to(torch.float32))[:, None]
        data = (rows / divisors).round().clamp(-127, 127)
        return {DATA: data.to(torch.int8), SCALES: scales}, data * divisors
