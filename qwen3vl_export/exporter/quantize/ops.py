"""The quantized operators: nodes that compute a product or a look-up with packed weights; `quantize/experts.py` has
those of routed experts.

Each builder takes what a node reads and a method's settings (`recipe/quantize.py`), adds the weight inputs of the
packing's parts to the model and returns the nodes; the output of the last one replaces that of the original node. Knows
nothing about which nodes are rewritten.

Legend: N outputs or rows of a table, K inputs or values of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ...recipe.quantize import BlockSettings, Int8Dynamic
from ..opsets import MICROSOFT
from ..weights.inputs import Source, weight_input
from ..weights.packing import DATA, SCALES, ZERO_POINTS, Blockwise, Packing, PerColumn
from .restore import restore_rows


@dataclass(frozen=True)
class WeightReader:
    """A node that reads a weight [N, K]: `x` [..., K] times its rows plus a bias [N], or a look-up of rows `x`.

    Attributes:
        rows: the weight as the checkpoint stores it, row by row.
        shape: (N, K).
        dtype: of the weight and the result.
    """

    node: ir.Node
    x: ir.Value
    rows: Source
    shape: tuple[int, int]
    dtype: ir.DataType
    bias: ir.Value | None = None


NodeBuilder = Callable[[ir.Model, WeightReader, Any], list[ir.Node]]  # takes the settings of its own method


def _part_inputs(
    model: ir.Model, reader: WeightReader, packing: Packing, **shapes: tuple[int, ...]
) -> dict[str, ir.Value]:
    """The weight inputs of a packing's parts; `shapes` gives a part another shape of the same bytes."""
    return {
        name: weight_input(
            model,
            replace(reader.rows, packing=packing, part=name),
            part.dtype,
            shapes.get(name, part.shape),
        )
        for name, part in packing.parts(*reader.shape).items()
    }


def build_matmul_nbits(model: ir.Model, product: WeightReader, settings: BlockSettings) -> list[ir.Node]:
    """`com.microsoft.MatMulNBits`."""
    parts = _part_inputs(model, product, blockwise_packing(settings, product.dtype))
    attributes = {
        "N": product.shape[0],
        "K": product.shape[1],
        "bits": settings.bits,
        "block_size": settings.block_size,
        "accuracy_level": settings.accuracy_level,
    }
    inputs = [product.x, parts[DATA], parts[SCALES], parts.get(ZERO_POINTS), None, product.bias]
    while inputs[-1] is None:
        inputs.pop()
    return [ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)]


def build_gather(model: ir.Model, look_up: WeightReader, settings: BlockSettings) -> list[ir.Node]:
    """Rows of the integers, restored by standard operators; the same bytes as a `MatMulNBits` with this table reads."""
    packing = blockwise_packing(settings, look_up.dtype)
    rows, blocks, size = packing.parts(*look_up.shape)[DATA].shape
    parts = _part_inputs(model, look_up, packing, **{DATA: (rows, blocks * size)})
    assert look_up.x.shape is not None
    lead = (0,) * len(look_up.x.shape)  # as many indices as there are
    nodes = restore_rows(look_up.rows.parameter, parts, look_up.x, settings, lead, blocks)
    if look_up.dtype == ir.DataType.FLOAT:
        return nodes
    return [*nodes, ir.node("Cast", nodes[-1].outputs, {"to": int(look_up.dtype)})]


def build_dequantized_matmul(model: ir.Model, product: WeightReader, settings: BlockSettings) -> list[ir.Node]:
    """`DequantizeLinear` of blocks along the rows, then the original product."""
    parts = _part_inputs(model, product, blockwise_packing(settings, product.dtype, signed=True))
    attributes = {"axis": 1, "block_size": settings.block_size}
    dequantized = ir.node("DequantizeLinear", [parts[DATA], parts[SCALES]], attributes)
    if product.node.op_type == "Gemm":
        inputs = [product.x, dequantized.outputs[0], *([product.bias] if product.bias is not None else [])]
        return [dequantized, ir.node("Gemm", inputs, {"transB": 1})]
    transposed = ir.node("Transpose", dequantized.outputs, {"perm": [1, 0]})
    return [dequantized, transposed, ir.node("MatMul", [product.x, transposed.outputs[0]])]


def build_dynamic_matmul(model: ir.Model, product: WeightReader, settings: Int8Dynamic) -> list[ir.Node]:
    """`com.microsoft.DynamicQuantizeMatMul`."""
    parts = _part_inputs(model, product, PerColumn(product.dtype))
    inputs = [product.x, parts[DATA], parts[SCALES], None, product.bias]
    return [ir.node("DynamicQuantizeMatMul", inputs[: 5 if product.bias is not None else 3], domain=MICROSOFT)]


def build_integer_matmul(model: ir.Model, product: WeightReader, settings: Int8Dynamic) -> list[ir.Node]:
    """`DynamicQuantizeLinear`, `MatMulInteger` and a product with both scales; standard operators."""
    parts = _part_inputs(model, product, PerColumn(product.dtype))
    quantized = ir.node("DynamicQuantizeLinear", [product.x], num_outputs=3)
    x, scale, zero_point = quantized.outputs
    sums = ir.node("MatMulInteger", [x, parts[DATA], zero_point])
    floats = ir.node("Cast", sums.outputs, {"to": int(product.dtype)})
    scales = ir.node("Mul", [scale, parts[SCALES]])
    nodes = [quantized, sums, floats, scales, ir.node("Mul", [floats.outputs[0], scales.outputs[0]])]
    if product.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], product.bias]))
    return nodes


def blockwise_packing(settings: BlockSettings, scale_dtype: ir.DataType, signed: bool = False) -> Blockwise:
    """The packing of a method's settings; `use_rows` replaces it where a weight is quantized already
    (`weights/quantized_rows.py`)."""
    search = settings.algorithm != "rtn"
    return Blockwise(settings.bits, settings.block_size, settings.symmetric, search, scale_dtype, signed)
