"""Quantization: matrix products and look-ups of a skeleton to their quantized operators. `ir.Model -> ir.Model`.

Only the graph changes here: a weight input becomes one input for each part of its packing, and `weights/` makes their
bytes as it streams. Positions, norms and biases stay as they are, and so does every weight that a `keep` pattern names.

    method         ort                                portable (standard operators)
    int8, int4     MatMulNBits, GatherBlockQuantized, DequantizeLinear of blocks, then the product;
                   QMoE                               an expert's numbers restored one by one, as in float16 on both
    int8_dynamic   DynamicQuantizeMatMul              DynamicQuantizeLinear, MatMulInteger

Adding a method is a model in `recipe/quantize.py` and a line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from ...contract import EMBED_TOKENS, EMBEDDINGS
from ...errors import BuildError
from ...recipe.quantize import Quantize
from ..simplify import clean
from ..weights.inputs import (
    TURNED,
    Source,
    drop_unused,
    fold_layouts,
    remove,
    shape_of,
    source_of,
    weight_input,
    weight_inputs,
)
from .experts import is_in_loop, one_operator, restored, widened
from .ops import (
    MICROSOFT,
    Rewrite,
    Weighted,
    dequantized_product,
    dynamic_matmul,
    gather,
    integer_matmul,
    matmul_nbits,
)

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


ROUTER = "*.mlp.gate.weight"  # never quantized: it is small, and rounding it sends tokens to other experts


def quantize(model: ir.Model, plan: Quantize, target: str) -> ir.Model:
    """Rewrite one graph as its plan says.

    Raises:
        BuildError: a `keep` pattern matches no weight of the graph, or no operator takes its experts quantized.
    """
    if plan.method == "none":
        return model
    model = fold_layouts(model)
    weights = weight_inputs(model)
    kept = _kept(model, weights, plan.keep)
    quantized = {w for w in weights if (name := source_of(w).parameter) not in kept and not fnmatchcase(name, ROUTER)}
    table = model.graph.name in (EMBED_TOKENS, EMBEDDINGS)
    find: Callable[[ir.Node, set[ir.Value]], Weighted | None] = _look_up if table else _product
    write: Rewrite = gather if table else METHODS[plan.method, target]
    for node in list(model.graph.all_nodes()):
        found = find(node, quantized)
        if found is not None:
            _replace(node, write(model, found, plan))
        elif plan.method == "int8_dynamic":
            continue
        elif node.op_type == "MoE" and {node.inputs[2], node.inputs[4]} <= quantized:
            _replace(node, one_operator(model, node, plan))
        elif is_in_loop(node, quantized):
            last = widened(node)
            _replace(last, restored(model, node, plan))
            if last is not node:
                remove(node)
    left = next((weight for weight in quantized if len(shape_of(weight)) == 3 and weight.uses()), None)
    if left is not None:
        raise BuildError(
            f"{model.graph.name}: {source_of(left).parameter}: experts are quantized by int8 and int4 only",
            'Change one of them, or keep: ["*.experts.*"]',
        )
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports[MICROSOFT] = 1
    return clean(drop_unused(model))


def store_as(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """Store floating weights in a shorter dtype and cast them back where they are used; computing stays as it was.
    Scales of quantized ones are not the checkpoint's numbers, and stay."""
    model = fold_layouts(model)
    for weight in weight_inputs(model):
        if weight.dtype not in FLOATS or source_of(weight).packing is not None:
            continue
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
    if source.layout[-1:] == (TURNED,):
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
    remove(node)


METHODS: dict[tuple[str, str], Rewrite] = {
    ("int8", "ort"): matmul_nbits,
    ("int4", "ort"): matmul_nbits,
    ("int8_dynamic", "ort"): dynamic_matmul,
    ("int8", "portable"): dequantized_product,
    ("int4", "portable"): dequantized_product,
    ("int8_dynamic", "portable"): integer_matmul,
}
