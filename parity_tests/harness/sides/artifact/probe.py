"""Looks inside an ONNX graph: the values at its layers, which are found by the names of their weights.

Optimizing drops the tracer's metadata and renames values, but a parameter keeps its name
(`language_model.layers.3.self_attn.q_norm.weight`), so the node that reads it is the layer of that name. A product that
is fused of several layers' has the name of their fused weight, and a Split after it gives each layer its output. A
layer whose weight was packed under another name is left out. Knows files and onnxruntime; nothing about PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from qwen3vl_export.artifact import whole_name
from qwen3vl_export.exporter.checkpoint.names import members_of
from qwen3vl_export.runtime.session import DTYPES, Opener, load_session, session_options

from .float_activations import Change, keep_products_in_float, leave

# `….q_proj.weight`, `….q_proj.weight.scales`, `….q_proj.MatMul.weight_Q4`: the module, then which of its parameters.
TOWERS = "visual|vision_model|language_model|lm_head|embed_tokens|blocks|layers|merger|deepstack|patch_embed|pos_embed"
PARAMETER = re.compile(
    rf"(?P<module>(?:{TOWERS}).*?|lm_head|embed_tokens)(?:[./]MatMul)?[./](?:weight|bias)(?:\W.*|_.*)?$"
)
CARRIERS = (
    "DequantizeLinear",
    "Transpose",
    "Cast",
    "Reshape",
    "Identity",
    "QuantizeLinear",
)  # of a weight to its use
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "DynamicQuantizeMatMul")
FIRST_INPUT = (
    "MatMul",
    "Gemm",
    "MatMulNBits",
    "RMSNormalization",
    "LayerNormalization",
    "SimplifiedLayerNormalization",
)

Reader = Callable[..., list[NDArray[Any]]]  # (feeds, names of some of the values) -> the values


@dataclass(frozen=True)
class Layer:
    """A layer found in a graph.

    Attributes:
        module: its name after the tower's: `layers.3.self_attn.q_norm`, `blocks.0.attn.qkv`, `merger.linear_fc1`.
        op: the operator that computes it.
        input: the value it reads, if that is the operator's first input; else None.
        maker: the operator that computes `input`, looking through reshapes; empty for a graph's input.
        output: the value it computes.
    """

    module: str
    op: str
    input: str | None
    maker: str
    output: str


def module_of(parameter: str) -> str | None:
    """`language_model.layers.3.self_attn.q_norm.weight` -> `layers.3.self_attn.q_norm`; None if not a parameter."""
    match = PARAMETER.search(parameter.replace("/", "."))
    if match is None:
        return None
    name = re.sub(r"^(visual|vision_model|language_model)\.", "", match["module"])
    return re.sub(r"(layers\.\d+\.)attn\.", r"\1self_attn.", name)


def layers_of(model: ModelProto) -> list[Layer]:
    """The layers of a graph in its order; of several nodes that read one module's parameters, the last is the layer."""
    readers = readers_of(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    order = {node.output[0]: index for index, node in enumerate(model.graph.node) if node.output}
    layers: dict[str, NodeProto] = {}
    for tensor in model.graph.initializer:
        module = module_of(tensor.name)
        for node in users_of(tensor.name, readers) if module is not None else ():
            assert module is not None
            if module not in layers or order[node.output[0]] > order[layers[module].output[0]]:
                layers[module] = node
    ordered = sorted(layers.items(), key=lambda item: order[item[1].output[0]])
    return [layer for entry in ordered for layer in split_layer(describe_layer(*entry, makers, readers), readers)]


def readers_of(model: ModelProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each value of a graph."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def split_layer(layer: Layer, readers: Mapping[str, Sequence[NodeProto]]) -> list[Layer]:
    """The layers that one is fused of; none if nothing splits its output. One that is not fused is returned."""
    members = members_of(layer.module)
    if len(members) == 1:
        return [layer]
    split = split_after(layer.output, readers)
    outputs = zip(members, split.output, strict=True) if split is not None else ()
    return [replace(layer, module=module, output=output) for module, output in outputs]


def split_after(value: str, readers: Mapping[str, Sequence[NodeProto]]) -> NodeProto | None:
    """The Split that a value leads to, as a weight or as a fused product's output; None if it is read otherwise."""
    nodes = readers.get(value, ())
    while len(nodes) == 1 and nodes[0].op_type in (*CARRIERS, *PRODUCTS):
        nodes = readers.get(nodes[0].output[0], ())
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == "Split" else None


def users_of(name: str, readers: Mapping[str, Sequence[NodeProto]]) -> list[NodeProto]:
    """The nodes that use a weight, looking through those that only pass it on."""
    nodes = []
    for node in readers.get(name, ()):
        nodes += users_of(node.output[0], readers) if node.op_type in CARRIERS else [node]
    return nodes


def describe_layer(
    module: str, node: NodeProto, makers: Mapping[str, NodeProto], readers: Mapping[str, Sequence[NodeProto]]
) -> Layer:
    """The layer that a node computes, by itself or between a division of its input's rows and their multiplication."""
    first, output = node.input[0], joined_output(node, readers)
    division = makers.get(first)
    if division is not None and division.op_type == "Div":
        products = (user for user in readers.get(output, ()) if user.op_type == "Mul")
        whole = next((user for user in products if division.input[1] in user.input), None)
        if whole is not None:
            first, output = division.input[0], whole.output[0]
    if node.op_type not in FIRST_INPUT:
        return Layer(module, node.op_type, None, "", output)
    source = first
    while source in makers and makers[source].op_type in CARRIERS:
        source = makers[source].input[0]
    maker = makers[source].op_type if source in makers else ""
    return Layer(module, node.op_type, first, maker, output)


def joined_output(node: NodeProto, readers: Mapping[str, Sequence[NodeProto]]) -> str:
    """The value that a node computes; of a product with a block of a weight's rows, that of all blocks."""
    if all(whole_name(name) == name for name in node.input):
        return str(node.output[0])
    (joined,) = readers[node.output[0]]
    return str(joined.output[0])


def open_reader(
    path: Path,
    names: Sequence[str],
    threads: int | None = None,
    change: Change = leave,
    opener: Opener = load_session,
) -> Reader:
    """What runs a graph and returns values of it, outputs or inner ones: all of `names`, or some of them.

    Args:
        threads: that of the shipped runtime. Sums that are split among another number of threads round differently,
            which in half precision is enough to route a token to another expert.
        change: of the graph, before it is opened.
        opener: that of the shipped runtime's sessions.
    """
    model = change(onnx.load(path, load_external_data=False))
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    options = session_options(path.stem, threads)
    if change is not leave:
        keep_products_in_float(options)
    session = opener(path, options, model.SerializeToString())
    types = {node.name: node.type for node in (*session.get_inputs(), *session.get_overridable_initializers())}

    def run(feeds: Mapping[str, NDArray[Any]], chosen: Sequence[str] = names) -> list[NDArray[Any]]:
        cast = {name: array.astype(DTYPES[types[name]], copy=False) for name, array in feeds.items() if name in types}
        values: list[NDArray[Any]] = session.run(list(chosen), cast)
        return values

    return run
