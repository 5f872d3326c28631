"""Quantization: matrix products and look-ups of a skeleton to their quantized operators. `ir.Model -> ir.Model`.

Only the graph changes here: a weight input becomes one input for each part of its packing, whose bytes `weights/`
computes as it streams. Positions, norms, biases and the two rows of a reranker's head are not quantized, nor is any
weight that a `keep` pattern matches.

    method         ort                                portable (standard operators)
    int8, int4     MatMulNBits, QMoE                  DequantizeLinear of blocks, then the product; experts restored
                                                      one at a time, as in float16 on both targets
    int8_dynamic   DynamicQuantizeMatMul              DynamicQuantizeLinear, MatMulInteger; on both between Div and Mul
                                                      where tokens have scales of their own (`quantize/tokens.py`)
    source         as int8 and int4, with the integers of the checkpoint (`quantize/source.py`)

Rows of a table are restored by standard operators on both (`quantize/restore.py`).

A new method takes a model in `recipe/quantize.py` and a line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from ...contract import EMBED_TOKENS, EMBEDDINGS
from ...errors import BuildError
from ...recipe.quantize import BlockSettings, Int8Dynamic, MethodSettings
from ..checkpoint.names import SCORE, members_of
from ..opsets import declare_microsoft
from ..simplify import clean
from ..weights.inputs import (
    TRANSPOSE_MATRIX,
    drop_unused,
    fold_transforms,
    remove,
    shape_of,
    source_of,
    weight_input,
    weight_inputs,
)
from ..weights.quantized_rows import use_rows
from .experts import ROUTER, build_qmoe, dequantize_expert, selects_expert, widening_cast
from .ops import (
    NodeBuilder,
    WeightReader,
    build_dequantized_matmul,
    build_dynamic_matmul,
    build_gather,
    build_integer_matmul,
    build_matmul_nbits,
)
from .source import NOTHING_CARRIED, SourceWeights
from .tokens import scale_tokens

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def quantize(
    model: ir.Model, settings: MethodSettings, target: str, source_weights: SourceWeights = NOTHING_CARRIED
) -> ir.Model:
    """Quantize one graph.

    Args:
        settings: the recipe's, for this graph.
        target: `ort` or `portable`.
        source_weights: what `method: source` carries over.

    Raises:
        BuildError: a `keep` pattern matches no weight of the graph, the method has no operator for its experts or for a
            weight that it carries over, or the rows of an expert are no whole number of blocks.
    """
    if settings.method == "none":
        return model
    model = fold_transforms(model)
    weights = weight_inputs(model)
    _check_patterns(model, weights, settings.keep)

    storage: dict[str, Any] = {}
    for parameter in {source_of(weight).parameter for weight in weights}:
        stored = storage_of(members_of(parameter)[0], settings, source_weights)
        if stored is not None:
            storage[parameter] = stored
    quantized = {weight for weight in weights if source_of(weight).parameter in storage}

    def settings_of(weight: ir.Value | None) -> Any:
        return storage[source_of(weight).parameter] if weight is not None else None

    is_table = model.graph.name in (EMBED_TOKENS, EMBEDDINGS)
    match: Callable[[ir.Node, set[ir.Value]], WeightReader | None] = _match_look_up if is_table else _match_product
    build: NodeBuilder = build_gather if is_table else METHODS[settings.method, target]
    for node in list(model.graph.all_nodes()):
        reader = match(node, quantized)
        if reader is not None:
            _replace(node, build(model, reader, storage[reader.rows.parameter]))
        elif settings.method == "int8_dynamic":
            continue
        elif node.op_type == "MoE" and {node.inputs[2], node.inputs[4]} <= quantized:
            _replace(node, build_qmoe(model, node, settings_of(node.inputs[2])))
        elif selects_expert(node, quantized):
            last = widening_cast(node) or node
            _replace(last, dequantize_expert(model, node, settings_of(node.inputs[0])))
            if last is not node:
                remove(node)
    unsupported = next((weight for weight in quantized if len(shape_of(weight)) == 3 and weight.uses()), None)
    if unsupported is not None:
        raise BuildError(
            f"{model.graph.name}: {source_of(unsupported).parameter}: experts are quantized by int8 and int4 only",
            'Choose one of these methods, or keep: ["*.experts.*"]',
        )
    declare_microsoft(model)
    if settings.method == "source":
        left = next((source_of(weight).parameter for weight in quantized if weight.uses()), None)
        if left is not None:
            raise BuildError(
                f"{model.graph.name}: {left} is quantized and no product, look-up or expert reads it: its integers "
                "cannot be carried over",
                f'Restore it, keep: ["{left}"]',
            )
        model = use_rows(model, source_weights.rows.__getitem__)
    return clean(drop_unused(model))


def storage_of(
    parameter: str, settings: MethodSettings, source_weights: SourceWeights = NOTHING_CARRIED
) -> BlockSettings | Int8Dynamic | None:
    """How the weight of a parameter is quantized; None if it is not.

    Args:
        settings, source_weights: as for `quantize`.
    """
    if settings.method == "none" or is_exact(parameter) or any(fnmatchcase(parameter, p) for p in settings.keep):
        return None
    return source_weights.settings.get(parameter) if settings.method == "source" else settings


def is_exact(parameter: str) -> bool:
    """Whether a product decides between few outcomes, so that its weights are never quantized."""
    return parameter == SCORE or fnmatchcase(parameter, ROUTER)


def store_as(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """Store floating-point weights in a smaller dtype and cast them back where they are read; computation keeps its
    dtype. Scales of quantized weights are not the checkpoint's numbers and keep theirs."""
    model = fold_transforms(model)
    for weight in weight_inputs(model):
        if weight.dtype not in FLOATS or source_of(weight).packing is not None:
            continue
        stored = weight_input(model, source_of(weight), dtype, shape_of(weight))
        cast = ir.node("Cast", [stored], {"to": int(weight.dtype)})
        weight.replace_all_uses_with(cast.outputs[0])
        model.graph.inputs.remove(weight)
        model.graph.insert_before(model.graph[0], cast)
    return model


def _check_patterns(model: ir.Model, weights: Sequence[ir.Value], patterns: Sequence[str]) -> None:
    """Look for the weights that patterns name.

    Raises:
        BuildError: a pattern that matches none.
    """
    parameters = sorted({name for weight in weights for name in members_of(source_of(weight).parameter)})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise BuildError(
                f"{model.graph.name}: keep: {pattern} matches none of its weights",
                f"They have names like {parameters[0]}; * matches any text",
            )


def _match_product(node: ir.Node, weights: set[ir.Value]) -> WeightReader | None:
    """A MatMul or Gemm with one of these weights, whose rows are the outputs."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or weight not in weights or weight.dtype is None:
        return None
    source, shape = source_of(weight), shape_of(weight)
    if node.op_type == "Gemm" and node.attributes["transB"].as_int():
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return WeightReader(node, x, source, (shape[0], shape[1]), weight.dtype, bias)
    if source.transform[-1:] == (TRANSPOSE_MATRIX,):
        rows = replace(source, transform=source.transform[:-1])
        return WeightReader(node, x, rows, (shape[1], shape[0]), weight.dtype)
    return None


def _match_look_up(node: ir.Node, weights: set[ir.Value]) -> WeightReader | None:
    """A Gather of a table's rows."""
    table, indices = (node.inputs[0], node.inputs[1]) if node.op_type == "Gather" else (None, None)
    if table is None or indices is None or table not in weights or table.dtype is None:
        return None
    rows, width = shape_of(table)
    return WeightReader(node, indices, source_of(table), (rows, width), table.dtype)


def _replace(node: ir.Node, new: list[ir.Node]) -> None:
    """Replace a node by others; the output of the last one takes the place of its output."""
    assert node.graph is not None
    node.graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
    new[-1].outputs[0].name = node.outputs[0].name
    new[-1].outputs[0].shape, new[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    remove(node)


METHODS: dict[tuple[str, str], NodeBuilder] = {  # by method and target
    ("int8", "ort"): build_matmul_nbits,
    ("int4", "ort"): build_matmul_nbits,
    ("source", "ort"): build_matmul_nbits,
    ("int8_dynamic", "ort"): scale_tokens(build_dynamic_matmul),
    ("int8", "portable"): build_dequantized_matmul,
    ("int4", "portable"): build_dequantized_matmul,
    ("int8_dynamic", "portable"): scale_tokens(build_integer_matmul),
}
