"""The graphs of an artifact with activations in floating point: the same file in memory, its data as stored.

Operators that round activations to 8 bits when they run are replaced by ones that compute with the same dequantized
weights and round nothing, so that PyTorch with these weights computes the same:

    MatMulNBits, QMoE of 4 bits    `accuracy_level` 4 becomes 1 or is left out
    DynamicQuantizeMatMul          DequantizeLinear, MatMul and Add
    MatMulInteger                  the same, in place of the nodes from DynamicQuantizeLinear to the product with scales
    GroupQueryAttention            its cache holds what is computed, not integers
    QMoE of 8 bits                 DequantizeLinear of blocks and MoE: onnxruntime's CPU kernel rounds activations at
                                   every accuracy_level, by up to 1 % of the result

Everything around these operators stays as it is in the artifact. Knows operators; nothing about what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import INPUTS_EMBEDS
from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime import Qwen3VL
from qwen3vl_export.runtime.conversation import FeatureCache
from qwen3vl_export.runtime.session import Opener, Sessions

FLOAT_LEVEL = 1  # `accuracy_level` of a product in float32
ROUNDED_LEVEL = 4  # in 8 bits
MICROSOFT = "com.microsoft"
ATTENTION = "GroupQueryAttention"
CACHE_SCALES = (12, 13)  # its inputs where the cache is quantized: of keys and of values
CACHE_ONLY = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")  # attributes of a quantized cache
QMOE_ONLY = ("expert_weight_bits", "block_size", "accuracy_level")  # attributes that MoE does not have

Change = Callable[[ModelProto], ModelProto]


class ChangedSessions(Sessions):
    """The sessions of an artifact whose graphs are changed in memory before they are opened."""

    def __init__(self, artifact: Artifact, threads: int | None, change: Change, opener: Opener | None = None) -> None:
        super().__init__(artifact, threads, opener)
        self.change = change

    def load(self, path: Path, options: Any) -> Any:
        model = self.change(onnx.load(path, load_external_data=False))
        keep_products_in_float(options)
        return self.opener(path, options, model.SerializeToString())


def changed_model(model: Qwen3VL, change: Change) -> Qwen3VL:
    """A copy of a model whose graphs are changed in memory before they are opened."""
    changed, sessions = copy(model), model.sessions
    changed.sessions = ChangedSessions(model.artifact, sessions.threads, change, sessions.opener)
    changed.feature_cache = FeatureCache()
    return changed


def keep_products_in_float(options: Any) -> None:
    """Set the `accuracy_level` of products that onnxruntime fuses from DequantizeLinear and MatMul, by default 4."""
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(FLOAT_LEVEL))


def leave(model: ModelProto) -> ModelProto:
    """The graph as it is."""
    return model


def change_of(sessions: Sessions) -> Change:
    """How these sessions change a graph before they open it."""
    return sessions.change if isinstance(sessions, ChangedSessions) else leave


def rounds_activations(node: NodeProto) -> bool:
    """Whether an operator rounds activations to 8 bits when it runs."""
    if node.op_type in ("DynamicQuantizeMatMul", "DynamicQuantizeLinear", "MatMulInteger"):
        return True
    if has_quantized_cache(node):
        return True
    values = attributes_of(node)
    if node.op_type == "QMoE" and values.get("expert_weight_bits") == 8:
        return True
    return node.op_type in ("MatMulNBits", "QMoE") and values.get("accuracy_level") == ROUNDED_LEVEL


def rounds_in_blocks(node: NodeProto) -> bool:
    """Whether an operator is a product with blocks of integers that rounds activations."""
    return node.op_type == "MatMulNBits" and rounds_activations(node)


def float_activations(model: ModelProto) -> ModelProto:
    """A copy of a graph that rounds no activations.

    Args:
        model: without its external data.

    Raises:
        ParityError: an operator that rounds activations has no replacement.
    """
    changed = replace_nodes(model, replacement)
    graph = changed.graph
    left = next((node for node in nodes_of(graph) if rounds_activations(node)), None)
    if left is not None:
        raise ParityError(
            f"{graph.name}: {left.op_type} {left.name} rounds activations, and no operator is known that does not",
            "Add one to harness/sides/artifact/float_activations.py",
        )
    return changed


def float_cache(model: ModelProto) -> ModelProto:
    """A copy of a graph whose cache, if it has one, holds keys and values as they are computed."""
    return replace_nodes(model, unquantized_cache)


def float_blocks(model: ModelProto) -> ModelProto:
    """A copy of a graph whose `MatMulNBits` round no activations, as in WebAssembly, which has no kernel that does."""
    return replace_nodes(model, lambda graph, node: [at_float_level(node)] if rounds_in_blocks(node) else [node])


def unquantized_cache(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """The node that computes what a node does with a cache in floating point."""
    attention = quantized_attention(node)
    return [node if attention is None else with_float_cache(graph, node, attention)]


def replace_nodes(model: ModelProto, replace: Callable[[GraphProto, NodeProto], list[NodeProto]]) -> ModelProto:
    """A copy of a model with other nodes in place of each."""
    changed = ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += replace(graph, node)
    del graph.node[:]
    graph.node.extend(drop_unread(nodes, {value.name for value in graph.output}))
    return changed


def replacement(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """The nodes that compute what a node does, without rounding activations."""
    if node.op_type == "DynamicQuantizeMatMul":
        return float_product(node)
    if node.op_type == "Mul":
        return float_integer_product(graph, node)
    if node.op_type == "QMoE" and attributes_of(node)["expert_weight_bits"] == 8:
        return float_experts(graph, node)
    if rounds_activations(node) and node.op_type in ("MatMulNBits", "QMoE"):
        return [at_float_level(node)]
    return unquantized_cache(graph, node)


def at_float_level(node: NodeProto) -> NodeProto:
    """The same operator with its activations in floating point; onnxruntime before 1.31 refuses a QMoE with a level."""
    changed = NodeProto()
    changed.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
    del changed.attribute[:]
    changed.attribute.extend(kept)
    if node.op_type == "MatMulNBits":
        changed.attribute.append(helper.make_attribute("accuracy_level", FLOAT_LEVEL))
    return changed


def has_quantized_cache(node: NodeProto) -> bool:
    """Whether a node is attention that stores integers."""
    return node.op_type == ATTENTION and len(node.input) > CACHE_SCALES[0] and bool(node.input[CACHE_SCALES[0]])


def quantized_attention(node: NodeProto) -> NodeProto | None:
    """The attention with a quantized cache that a node is, or that one of its branches holds."""
    return next(filter(has_quantized_cache, (node, *nodes_inside(node))), None)


def with_float_cache(graph: GraphProto, node: NodeProto, attention: NodeProto) -> NodeProto:
    """The attention of a node over keys and values as they are computed; the graph takes and returns them so."""
    changed = NodeProto()
    changed.CopyFrom(attention)
    del changed.input[CACHE_SCALES[0] :], changed.output[:], changed.attribute[:]
    changed.output.extend(node.output)
    changed.attribute.extend(attribute for attribute in attention.attribute if attribute.name not in CACHE_ONLY)
    (computed,) = {value.type.tensor_type.elem_type for value in graph.input if value.name == INPUTS_EMBEDS}
    for value in (*graph.input, *graph.output):
        if value.name in (*changed.input, *changed.output):
            value.type.tensor_type.elem_type = computed
    return changed


def float_product(node: NodeProto) -> list[NodeProto]:
    """A `DynamicQuantizeMatMul` (x, integers [K, N], scales [N], zero points, bias)."""
    x, integers, scales, zero_points, bias = [*node.input, "", ""][:5]
    return product_nodes(x, [name for name in (integers, scales, zero_points) if name], bias, node.output[0])


def float_integer_product(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """The last node of a product in standard operators: Mul(Cast(MatMulInteger), Mul(scale of x, scales [N]))."""
    makers = {name: maker for maker in graph.node for name in maker.output}
    for sums, factor in (node.input, reversed(node.input)):
        cast, scale = makers.get(sums), makers.get(factor)
        product = makers.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        if product is None or product.op_type != "MatMulInteger" or scale is None or scale.op_type != "Mul":
            continue
        quantized = makers[product.input[0]]
        (scales,) = [name for name in scale.input if name not in quantized.output]
        return product_nodes(quantized.input[0], [product.input[1], scales], "", node.output[0])
    return [node]


def product_nodes(x: str, weight: Sequence[str], bias: str, output: str) -> list[NodeProto]:
    """x times a weight [K, N] with a scale for each column, plus a bias [N]."""
    product = f"{output}.product" if bias else output
    nodes = [
        helper.make_node("DequantizeLinear", weight, [f"{output}.weight"], axis=1),
        helper.make_node("MatMul", [x, f"{output}.weight"], [product]),
    ]
    return [*nodes, helper.make_node("Add", [product, bias], [output])] if bias else nodes


def float_experts(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """A `QMoE` with bytes [E, N, K] and a scale for each block of a row."""
    names = [*node.input, *[""] * 14][:14]
    size = attributes_of(node)["block_size"]
    stacks, nodes = [], []
    for data, scales, zero_points in ((2, 3, 11), (5, 6, 12)):
        zeros = names[zero_points] or middle_of(graph, names[scales])
        stacks.append(f"{node.output[0]}.{names[data]}")
        inputs = [names[data], names[scales], zeros]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [stacks[-1]], axis=2, block_size=size))
    experts = helper.make_node(
        "MoE", [names[0], names[1], stacks[0], names[4], stacks[1], names[7]], node.output, node.name, domain=MICROSOFT
    )
    experts.attribute.extend(attribute for attribute in node.attribute if attribute.name not in QMOE_ONLY)
    while not experts.input[-1]:
        del experts.input[-1]
    return [*nodes, experts]


def middle_of(graph: GraphProto, scales: str) -> str:
    """The name of zero points of 128, of the scales' shape: what an operator without any has for bytes."""
    name = f"{scales}.middle"
    shape = next(tuple(tensor.dims) for tensor in graph.initializer if tensor.name == scales)
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.full(shape, 128, np.uint8), name))
    return name


def drop_unread(nodes: Sequence[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """The nodes without those of which nothing is read."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(name for inner in (node, *nodes_inside(node)) for name in inner.input)
    return kept[::-1]


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        yield from nodes_inside(node)


def nodes_inside(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes of the graphs inside a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from nodes_of(attribute.g)


def attributes_of(node: NodeProto) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
