"""Quantization: matrix products and look-ups of a skeleton to their quantized operators. `ir.Model -> ir.Model`.

Only the graph changes here: a weight input becomes one input for each part of its packing, and `weights.py` makes their
bytes as it streams. Positions, norms and biases stay as they are, and so does every weight that a `keep` pattern names.

    method         ort                                portable (standard operators)
    int8, int4     MatMulNBits, GatherBlockQuantized  DequantizeLinear of blocks, then the product
    int8_dynamic   DynamicQuantizeMatMul              DynamicQuantizeLinear, MatMulInteger

Adding a method is a model in `recipe_quantize.py` and a line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from .contract import EMBED_TOKENS, EMBEDDINGS
from .errors import BuildError
from .layouts import Source, drop_unused, fold_layouts, shape_of, source_of, weight_input
from .packing import DATA, SCALES, ZERO_POINTS, Blockwise, Packing, PerColumn
from .recipe_quantize import Blocks, Int8Dynamic, Quantize
from .simplify import clean
from .trace import weight_inputs

MICROSOFT = "com.microsoft"
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


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


def quantize(model: ir.Model, plan: Quantize, target: str) -> ir.Model:
    """Rewrite one graph as its plan says.

    Raises:
        BuildError: a `keep` pattern matches no weight of the graph.
    """
    if plan.method == "none":
        return model
    model = fold_layouts(model)
    weights = weight_inputs(model)
    kept = _kept(model, weights, plan.keep)
    quantized = {weight for weight in weights if source_of(weight).parameter not in kept}
    table = model.graph.name in (EMBED_TOKENS, EMBEDDINGS)
    find: Callable[[ir.Node, set[ir.Value]], Weighted | None] = _look_up if table else _product
    write: Rewrite = _gather if table else METHODS[plan.method, target]
    for node in list(model.graph.all_nodes()):
        found = find(node, quantized)
        if found is not None:
            _replace(node, write(model, found, plan))
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports[MICROSOFT] = 1
    return clean(drop_unused(model))


def store_as(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """Store floating weights in a shorter dtype and cast them back where they are used; computing stays as it was."""
    model = fold_layouts(model)
    for weight in [value for value in weight_inputs(model) if value.dtype in FLOATS]:
        assert weight.dtype is not None
        stored = weight_input(model, source_of(weight), dtype, shape_of(weight))
        cast = ir.node("Cast", [stored], {"to": int(weight.dtype)})
        weight.replace_all_uses_with(cast.outputs[0])
        model.graph.inputs.remove(weight)
        model.graph.insert_before(model.graph[0], cast)
    return model


def _kept(model: ir.Model, weights: Sequence[ir.Value], patterns: Sequence[str]) -> set[str]:
    """Parameters that a pattern names."""
    parameters = sorted({source_of(weight).parameter for weight in weights})
    kept: set[str] = set()
    for pattern in patterns:
        matched = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matched:
            raise BuildError(
                f"{model.graph.name}: keep: {pattern} matches none of its weights",
                f"They are named like {parameters[0]}; * stands for anything",
            )
        kept |= matched
    return kept


def _product(node: ir.Node, weights: set[ir.Value]) -> Weighted | None:
    """A MatMul or Gemm with a matrix of weights."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or weight not in weights or weight.dtype is None:
        return None
    source, shape = source_of(weight), shape_of(weight)
    if node.op_type == "Gemm" and node.attributes["transB"].as_int():
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Weighted(node, x, source, (shape[0], shape[1]), weight.dtype, bias)
    if source.layout and source.layout[-1] == ("Transpose", (1, 0)):
        rows = Source(source.parameter, source.layout[:-1])
        return Weighted(node, x, rows, (shape[1], shape[0]), weight.dtype)
    return None


def _look_up(node: ir.Node, weights: set[ir.Value]) -> Weighted | None:
    """A Gather of a table's rows."""
    table, indices = (node.inputs[0], node.inputs[1]) if node.op_type == "Gather" else (None, None)
    if table is None or indices is None or table not in weights or table.dtype is None:
        return None
    rows, width = shape_of(table)
    return Weighted(node, indices, source_of(table), (rows, width), table.dtype)


def _replace(node: ir.Node, new: list[ir.Node]) -> None:
    """Put nodes in the place of one; the last one's output stands for its output."""
    assert node.graph is not None
    node.graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
    new[-1].outputs[0].name = node.outputs[0].name
    new[-1].outputs[0].shape, new[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    node.graph.remove(node, safe=True)


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


def _matmul_nbits(model: ir.Model, product: Weighted, plan: Blocks) -> list[ir.Node]:
    """`com.microsoft.MatMulNBits`."""
    parts = _parts(model, product, _blockwise(plan, product.dtype))
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


def _gather(model: ir.Model, look_up: Weighted, plan: Blocks) -> list[ir.Node]:
    """`com.microsoft.GatherBlockQuantized`; the bytes are those a `MatMulNBits` with this table would read."""
    packing = _blockwise(plan, look_up.dtype)
    rows, blocks, size = packing.parts(*look_up.shape)[DATA].shape
    parts = _parts(model, look_up, packing, **{DATA: (rows, blocks * size)})
    attributes = {"bits": plan.bits, "block_size": plan.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [parts[DATA], look_up.x, parts[SCALES]]
    if ZERO_POINTS in parts:
        inputs.append(parts[ZERO_POINTS])
    return [ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)]


def _dequantized_product(model: ir.Model, product: Weighted, plan: Blocks) -> list[ir.Node]:
    """`DequantizeLinear` of blocks along the rows, and the product as before."""
    parts = _parts(model, product, _blockwise(plan, product.dtype, signed=True))
    attributes = {"axis": 1, "block_size": plan.block_size}
    restored = ir.node("DequantizeLinear", [parts[DATA], parts[SCALES]], attributes)
    if product.node.op_type == "Gemm":
        inputs = [product.x, restored.outputs[0], *([product.bias] if product.bias is not None else [])]
        return [restored, ir.node("Gemm", inputs, {"transB": 1})]
    turned = ir.node("Transpose", restored.outputs, {"perm": [1, 0]})
    return [restored, turned, ir.node("MatMul", [product.x, turned.outputs[0]])]


def _dynamic_matmul(model: ir.Model, product: Weighted, plan: Int8Dynamic) -> list[ir.Node]:
    """`com.microsoft.DynamicQuantizeMatMul`."""
    parts = _parts(model, product, PerColumn(product.dtype))
    inputs = [product.x, parts[DATA], parts[SCALES], None, product.bias]
    return [ir.node("DynamicQuantizeMatMul", inputs[: 5 if product.bias is not None else 3], domain=MICROSOFT)]


def _integer_matmul(model: ir.Model, product: Weighted, plan: Int8Dynamic) -> list[ir.Node]:
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


def _blockwise(plan: Blocks, dtype: ir.DataType, signed: bool = False) -> Blockwise:
    return Blockwise(plan.bits, plan.block_size, plan.symmetric, plan.algorithm == "search", dtype, signed)


METHODS: dict[tuple[str, str], Rewrite] = {
    ("int8", "ort"): _matmul_nbits,
    ("int4", "ort"): _matmul_nbits,
    ("int8_dynamic", "ort"): _dynamic_matmul,
    ("int8", "portable"): _dequantized_product,
    ("int4", "portable"): _dequantized_product,
    ("int8_dynamic", "portable"): _integer_matmul,
}
