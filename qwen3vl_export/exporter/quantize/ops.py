"""The quantized operators: the nodes that stand for a product or a look-up with packed weights; experts have a module
of their own.

Each writer takes what a node reads and a plan of `recipe/quantize.py`, adds the weight inputs of the packing's parts to
the model and returns the nodes; the last one's output takes the old one's place. Knows nothing about which nodes are
rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...recipe.quantize import Blocks, Int8Dynamic
from ..weights.inputs import Source, weight_input
from ..weights.packing import DATA, SCALES, ZERO_POINTS, Blockwise, Packing, PerColumn

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Weighted:
    """A node that reads a weight [N, K]: `x` [..., K] times its rows plus a bias [N], or a look-up of rows `x`."""

    node: ir.Node
    x: ir.Value
    rows: Source
    shape: tuple[int, int]
    dtype: ir.DataType
    bias: ir.Value | None = None


Rewrite = Callable[[ir.Model, Weighted, Any], list[ir.Node]]  # the plan is the method's own model


def _parts(model: ir.Model, weighted: Weighted, packing: Packing, **shapes: tuple[int, ...]) -> dict[str, ir.Value]:
    """The weight inputs of a packing's parts; `shapes` gives a part another shape of the same bytes."""
    return {
        name: weight_input(
            model,
            Source(weighted.rows.parameter, weighted.rows.layout, packing, name),
            part.dtype,
            shapes.get(name, part.shape),
        )
        for name, part in packing.parts(*weighted.shape).items()
    }


def matmul_nbits(model: ir.Model, product: Weighted, plan: Blocks) -> list[ir.Node]:
    """`com.microsoft.MatMulNBits`."""
    parts = _parts(model, product, blockwise(plan, product.dtype))
    attributes = {
        "N": product.shape[0],
        "K": product.shape[1],
        "bits": plan.bits,
        "block_size": plan.block_size,
        "accuracy_level": plan.accuracy_level,
    }
    inputs = [product.x, parts[DATA], parts[SCALES], parts.get(ZERO_POINTS), None, product.bias]
    while inputs[-1] is None:
        inputs.pop()
    return [ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)]


def gather(model: ir.Model, look_up: Weighted, plan: Blocks) -> list[ir.Node]:
    """`com.microsoft.GatherBlockQuantized`; the bytes are those a `MatMulNBits` with this table would read."""
    packing = blockwise(plan, look_up.dtype)
    rows, blocks, size = packing.parts(*look_up.shape)[DATA].shape
    parts = _parts(model, look_up, packing, **{DATA: (rows, blocks * size)})
    attributes = {"bits": plan.bits, "block_size": plan.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [parts[DATA], look_up.x, parts[SCALES]]
    if ZERO_POINTS in parts:
        inputs.append(parts[ZERO_POINTS])
    return [ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)]


def dequantized_product(model: ir.Model, product: Weighted, plan: Blocks) -> list[ir.Node]:
    """`DequantizeLinear` of blocks along the rows, and the product as before."""
    parts = _parts(model, product, blockwise(plan, product.dtype, signed=True))
    attributes = {"axis": 1, "block_size": plan.block_size}
    restored = ir.node("DequantizeLinear", [parts[DATA], parts[SCALES]], attributes)
    if product.node.op_type == "Gemm":
        inputs = [product.x, restored.outputs[0], *([product.bias] if product.bias is not None else [])]
        return [restored, ir.node("Gemm", inputs, {"transB": 1})]
    turned = ir.node("Transpose", restored.outputs, {"perm": [1, 0]})
    return [restored, turned, ir.node("MatMul", [product.x, turned.outputs[0]])]


def dynamic_matmul(model: ir.Model, product: Weighted, plan: Int8Dynamic) -> list[ir.Node]:
    """`com.microsoft.DynamicQuantizeMatMul`."""
    parts = _parts(model, product, PerColumn(product.dtype))
    inputs = [product.x, parts[DATA], parts[SCALES], None, product.bias]
    return [ir.node("DynamicQuantizeMatMul", inputs[: 5 if product.bias is not None else 3], domain=MICROSOFT)]


def integer_matmul(model: ir.Model, product: Weighted, plan: Int8Dynamic) -> list[ir.Node]:
    """`DynamicQuantizeLinear`, `MatMulInteger` and the scales put back in; standard operators."""
    parts = _parts(model, product, PerColumn(product.dtype))
    quantized = ir.node("DynamicQuantizeLinear", [product.x], num_outputs=3)
    x, scale, zero_point = quantized.outputs
    sums = ir.node("MatMulInteger", [x, parts[DATA], zero_point])
    floats = ir.node("Cast", sums.outputs, {"to": int(product.dtype)})
    scales = ir.node("Mul", [scale, parts[SCALES]])
    result = [quantized, sums, floats, scales, ir.node("Mul", [floats.outputs[0], scales.outputs[0]])]
    if product.bias is not None:
        result.append(ir.node("Add", [result[-1].outputs[0], product.bias]))
    return result


def blockwise(plan: Blocks, dtype: ir.DataType, signed: bool = False) -> Blockwise:
    return Blockwise(plan.bits, plan.block_size, plan.symmetric, plan.algorithm != "rtn", dtype, signed)
