"""Mistakes in graphs: functions that break one thing in a model, in place.

Most are inserted after a graph's inputs or before its outputs, where the contract fixes the names; the others look for
the piece of the graph they break and raise `PieceNotFound` if it is gone, so that no fault silently plants nothing.
Knows how to break things; not whether anybody notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen3vl_export.contract import ATTENTION_MASK, IMAGE_FEATURES, IMAGE_GRID_THW, INPUTS_EMBEDS, POSITION_IDS, Facts

from ..harness.sides.artifact.probe import readers_of, split_after

RMS_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
FAR = 1 << 31  # more patches than any picture has


class PieceNotFound(LookupError):
    """The artifact has no such piece: it changed, and the fault has to be adapted."""


# Editing graphs.


def add_constant(model: ModelProto, name: str, values: NDArray[Any]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def before_input(model: ModelProto, name: str, nodes: Callable[[str, str], list[NodeProto]]) -> None:
    """Insert nodes between an input and its consumers: `nodes(from, to)`."""
    changed = f"fault_{name}"
    redirect_reads(model.graph.node, name, changed)
    for index, node in enumerate(nodes(name, changed)):
        model.graph.node.insert(index, node)


def after_output(model: ModelProto, name: str, nodes: Callable[[str, str], list[NodeProto]]) -> None:
    """Insert nodes between an output and the node that computes it: `nodes(from, to)`."""
    original = f"fault_{name}"
    for node in model.graph.node:
        node.output[:] = [original if output == name else output for output in node.output]
    model.graph.node.extend(nodes(original, name))


def consumers(model: ModelProto, suffix: str) -> list[NodeProto]:
    """The nodes that read a parameter whose name ends in `suffix`."""
    nodes = [node for node in model.graph.node if any(name.endswith(suffix) for name in node.input)]
    if not nodes:
        raise PieceNotFound(f"no node reads a parameter named *{suffix}")
    return nodes


def replace_by_identity(node: NodeProto) -> None:
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name))


def insert_before(model: ModelProto, node: NodeProto, new: NodeProto) -> None:
    model.graph.node.insert(list(model.graph.node).index(node), new)


def column_order(model: ModelProto, facts: Facts, order: list[int]) -> str:
    """The name of int64 indices [W] that put the blocks of H columns of wide rows into `order`."""
    blocks = np.arange(facts.wide_size).reshape(1 + facts.num_deepstack, facts.hidden_size)
    return add_constant(model, "fault_columns", blocks[order].reshape(-1))


def plain_column_mask(model: ModelProto, facts: Facts) -> str:
    """The name of a float32 row [W]: 1 in the columns of the plain features, 0 in those of the DeepStack maps."""
    mask = (np.arange(facts.wide_size) < facts.hidden_size).astype(np.float32)
    return add_constant(model, "fault_mask", mask)


# Mistakes in graphs.


def deepstack_dropped(model: ModelProto, facts: Facts) -> None:
    mask = plain_column_mask(model, facts)
    before_input(model, INPUTS_EMBEDS, lambda a, b: [helper.make_node("Mul", [a, mask], [b])])


def deepstack_not_encoded(model: ModelProto, facts: Facts) -> None:
    mask = plain_column_mask(model, facts)
    after_output(model, IMAGE_FEATURES, lambda a, b: [helper.make_node("Mul", [a, mask], [b])])


def deepstack_swapped(model: ModelProto, facts: Facts) -> None:
    """The first two maps are exchanged."""
    order = column_order(model, facts, [0, 2, 1, *range(3, 1 + facts.num_deepstack)])
    after_output(model, IMAGE_FEATURES, lambda a, b: [helper.make_node("Gather", [a, order], [b], axis=-1)])


def deepstack_late(model: ModelProto, facts: Facts) -> None:
    """Each map one layer later: what mistaking the tower's tap indexes for the decoder's layers looks like."""
    splits = [
        node for node in model.graph.node if node.op_type == "Split" and len(node.output) == 1 + facts.num_deepstack
    ]
    if len(splits) != 1:
        raise PieceNotFound("no Split of the wide rows")
    hidden, *maps = splits[0].output
    parts = [f"fault_map_{index}" for index in range(len(maps))]
    splits[0].output[1:] = parts
    index = list(model.graph.node).index(splits[0]) + 1
    model.graph.node.insert(index, helper.make_node("Sub", [hidden, hidden], [maps[0]]))
    for source, target in zip(parts, maps[1:], strict=False):
        model.graph.node.insert(index, helper.make_node("Identity", [source], [target]))
    makers = {output: node for node in model.graph.node for output in node.output}
    (last,) = consumers(model, "language_model.norm.weight")
    while makers[last.input[0]].op_type in ("Slice", "Gather", "Reshape"):  # selects the rows whose logits are computed
        last = makers[last.input[0]]
    insert_before(model, last, helper.make_node("Add", [last.input[0], parts[-1]], ["fault_last"]))
    last.input[0] = "fault_last"


def mrope_axes(order: list[int]) -> Callable[[ModelProto, Facts], None]:
    """The decoder reads axis `order[k]` of the positions where it should read axis k."""

    def edit(model: ModelProto, facts: Facts) -> None:
        axes = add_constant(model, "fault_axes", np.array(order))
        before_input(model, POSITION_IDS, lambda a, b: [helper.make_node("Gather", [a, axes], [b], axis=0)])

    return edit


def mrope_blocked(model: ModelProto, facts: Facts) -> None:
    """The table of the axis of each frequency, sorted: T T T … H H H … W W W."""
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and list(tensor.dims) == [facts.head_dim // 2]:
            axes = numpy_helper.to_array(tensor)
            if axes.dtype == np.int64 and set(axes.tolist()) == {0, 1, 2}:
                tensor.CopyFrom(numpy_helper.from_array(np.sort(axes), tensor.name))
                return
    raise PieceNotFound("no int64 table of M-RoPE axes, one for each frequency")


def rope_theta(model: ModelProto, facts: Facts) -> None:
    """Frequencies of theta 500000, transformers' default."""
    half = facts.head_dim // 2
    wrong = (1 / 500_000 ** (np.arange(half) / half)).astype(np.float32)
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [half] and tensor.name.endswith("inv_freq"):
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
            return
    raise PieceNotFound("no table of rotary frequencies")


def mask_ignored(model: ModelProto, facts: Facts) -> None:
    seen = add_constant(model, "fault_one", np.array(1))
    before_input(model, ATTENTION_MASK, lambda a, b: [helper.make_node("Max", [a, seen], [b])])


def epsilon(model: ModelProto, facts: Facts) -> None:
    """1e-5 in every RMSNorm of the decoder."""
    norms = [node for node in model.graph.node if node.op_type in RMS_NORMS]
    if not norms:
        raise PieceNotFound("no RMSNorm node")
    for node in norms:
        others = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
        del node.attribute[:]
        node.attribute.extend([*others, helper.make_attribute("epsilon", 1e-5)])


def qk_norm_skipped(model: ModelProto, facts: Facts) -> None:
    for suffix in ("q_norm.weight", "k_norm.weight"):
        for node in consumers(model, suffix):
            if node.op_type not in RMS_NORMS:
                raise PieceNotFound(f"{suffix} is read by a {node.op_type}")
            replace_by_identity(node)


def gate_and_up_swapped(model: ModelProto, facts: Facts) -> None:
    """The halves of every fused product of an MLP the other way round: the activation of `up`, times `gate`."""
    readers = readers_of(model)
    weights = [tensor.name for tensor in model.graph.initializer if ".mlp.gate_up_proj.weight" in tensor.name]
    splits = [split for weight in weights if (split := split_after(weight, readers)) is not None]
    if not splits:
        raise PieceNotFound("no Split of a product of gate and up")
    for split in splits:
        split.output[:] = split.output[::-1]


def grid_swapped(model: ModelProto, facts: Facts) -> None:
    order = add_constant(model, "fault_order", np.array([0, 2, 1]))
    before_input(model, IMAGE_GRID_THW, lambda a, b: [helper.make_node("Gather", [a, order], [b], axis=1)])


def gelu_exact(model: ModelProto, facts: Facts) -> None:
    """The error function where the tower has its tanh approximation."""
    nodes = [node for node in model.graph.node if node.op_type in ("Gelu", "FastGelu")]
    changed = 0
    for node in nodes:
        kinds = [attribute for attribute in node.attribute if attribute.name == "approximate"]
        if node.op_type == "FastGelu" or any(attribute.s == b"tanh" for attribute in kinds):
            node.CopyFrom(helper.make_node("Gelu", [node.input[0]], [node.output[0]], node.name, approximate="none"))
            changed += 1
    if not changed:
        raise PieceNotFound("no Gelu with the tanh approximation")


def vision_rotary_skipped(model: ModelProto, facts: Facts) -> None:
    nodes = [node for node in model.graph.node if node.op_type == "RotaryEmbedding"]
    if not nodes:
        raise PieceNotFound("no RotaryEmbedding node")
    for node in nodes:
        replace_by_identity(node)


def attention_across_images(model: ModelProto, facts: Facts) -> None:
    """All patches of all pictures attend to each other: one segment, one frame."""
    redirect_reads(all_nodes(model.graph), segments_of(model), "fault_segments")
    add_constant(model, "fault_segments", np.array([[0, FAR, 1]]))


def attention_across_frames(model: ModelProto, facts: Facts) -> None:
    """The frames of a video attend to each other: its segment is one frame."""
    table = segments_of(model)
    redirect_reads(all_nodes(model.graph), table, "fault_segments")
    bounds = add_constant(model, "fault_keep", np.array([[1, 1, 0]]))
    frames = add_constant(model, "fault_one", np.array([[0, 0, 1]]))
    maker = next(node for node in model.graph.node if table in node.output)
    index = list(model.graph.node).index(maker) + 1
    model.graph.node.insert(index, helper.make_node("Mul", [table, bounds], ["fault_kept"]))
    model.graph.node.insert(index + 1, helper.make_node("Add", ["fault_kept", frames], ["fault_segments"]))


def segments_of(model: ModelProto) -> str:
    """The name of the table of attention segments: what the first Loop's body gathers from and does not compute."""
    for loop in all_nodes(model.graph):
        if loop.op_type != "Loop":
            continue
        body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
        inner = {name for node in body.node for name in node.output} | {value.name for value in body.input}
        for node in body.node:
            if node.op_type == "Gather" and node.input[0] not in inner:
                return str(node.input[0])
    raise PieceNotFound("no Loop over a table of attention segments")


def redirect_reads(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    """Every node that reads `old` reads `new`."""
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def before_casts(name: str, makers: dict[str, NodeProto]) -> str:
    """The value that Casts alone lead from to the value `name`."""
    while name in makers and makers[name].op_type == "Cast":
        name = makers[name].input[0]
    return name


def half_pixel_interpolation(model: ModelProto, facts: Facts) -> None:
    """align_corners=False: patch i reads at `(i + 0.5) * side / size - 0.5`, not at `i * (side - 1) / (size - 1)`."""
    makers = {output: node for node in model.graph.node for output in node.output}
    floors = [node.input[0] for node in model.graph.node if node.op_type == "Floor"]
    uncast = {before_casts(name, makers) for name in floors}
    sources = {name for name in uncast if makers.get(name, NodeProto()).op_type == "Div"}
    dtype = np.float32 if sources <= set(floors) else np.float64
    if len(sources) != 2:
        raise PieceNotFound(
            f"{len(sources)} interpolation coordinates (a Floor after a Div), expected one for each axis"
        )
    table = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("pos_embed.weight"))
    side = round(table.dims[0] ** 0.5)
    half, unit, zero, last, sides = (
        add_constant(model, f"fault_{name}", np.array(value, dtype))
        for name, value in {"half": 0.5, "one": 1, "zero": 0, "most": side - 1, "side": side}.items()
    )
    for source in sources:
        aligned, span = f"{source}_corners", makers[source].input[1]  # span = size - 1
        makers[source].output[0] = aligned
        steps = [
            ("Mul", [aligned, span], "spread"),
            ("Div", [f"{source}_spread", last], "index"),
            ("Add", [f"{source}_index", half], "center"),
            ("Mul", [f"{source}_center", sides], "scaled"),
            ("Add", [span, unit], "size"),
            ("Div", [f"{source}_scaled", f"{source}_size"], "edge"),
            ("Sub", [f"{source}_edge", half], "unclipped"),
        ]
        nodes = [helper.make_node(op, inputs, [f"{source}_{output}"]) for op, inputs, output in steps]
        nodes.append(helper.make_node("Clip", [f"{source}_unclipped", zero, last], [source]))
        first = list(model.graph.node).index(makers[source]) + 1
        for offset, node in enumerate(nodes):
            model.graph.node.insert(first + offset, node)
