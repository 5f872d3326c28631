"""Mistakes planted on purpose: each is a known way to get Qwen3-VL wrong, and verification must find every one.

A fault copies a good artifact, edits one graph of the copy, and seals it again (sizes and sha256 in the manifest), so
that only the numbers can give it away. Most faults are put in front of a graph's inputs or behind its outputs, where
the contract fixes the names; the others look for the piece of the graph they break and say so when it is not there.
Adding a fault is adding a function and a line to FAULTS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from qwen3vl_export.artifact import MANIFEST, Artifact, FileRecord, open_artifact, sha256_file
from qwen3vl_export.contract import DECODER, IMAGE_FEATURES, INPUTS_EMBEDS, POSITION_IDS, VISION_ENCODER, Facts

Edit = Callable[[ModelProto, Facts], None]


class NotThere(LookupError):
    """The graph has no such piece; it changed, and the fault has to follow."""


@dataclass(frozen=True)
class Fault:
    """One planted mistake: the graph it is in, and what verification must say about it.

    `stage` is the first check that must fail; `says` are words its message must hold, which name the area.
    """

    name: str
    graph: str
    edit: Edit
    stage: str
    says: str

    def plant(self, good: Path, out: Path) -> Path:
        """A copy of the artifact `good` at `out`, with this mistake in it."""
        shutil.copytree(good, out)
        artifact = open_artifact(out, check=False)
        path = artifact.graph_path(self.graph)
        model = onnx.load(path, load_external_data=False)
        self.edit(model, artifact.manifest.facts)
        onnx.save(model, path)
        seal(artifact, path)
        return out


def seal(artifact: Artifact, changed: Path) -> None:
    """Record the changed file in the manifest, as a build would have."""
    name = changed.relative_to(artifact.root).as_posix()
    record = FileRecord(changed.stat().st_size, sha256_file(changed))
    manifest = replace(artifact.manifest, files={**artifact.manifest.files, name: record})
    (artifact.root / MANIFEST).write_text(manifest.to_json(), "utf-8")


# Editing graphs.


def constant(model: ModelProto, name: str, values: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def before_input(model: ModelProto, name: str, nodes: Callable[[str, str], list[NodeProto]]) -> None:
    """Put nodes between an input and its consumers: `nodes(from, to)`."""
    changed = f"fault_{name}"
    for node in model.graph.node:
        node.input[:] = [changed if one == name else one for one in node.input]
    for index, node in enumerate(nodes(name, changed)):
        model.graph.node.insert(index, node)


def after_output(model: ModelProto, name: str, nodes: Callable[[str, str], list[NodeProto]]) -> None:
    """Put nodes between an output and the node that made it: `nodes(from, to)`."""
    original = f"fault_{name}"
    for node in model.graph.node:
        node.output[:] = [original if one == name else one for one in node.output]
    model.graph.node.extend(nodes(original, name))


def first_columns_only(model: ModelProto, facts: Facts) -> str:
    """A row [W] that is one in the columns of the plain features and zero in those of the DeepStack maps."""
    mask = (np.arange(facts.wide_size) < facts.hidden_size).astype(np.float32)
    return constant(model, "fault_mask", mask)


# The mistakes.


def deepstack_dropped(model: ModelProto, facts: Facts) -> None:
    mask = first_columns_only(model, facts)
    before_input(model, INPUTS_EMBEDS, lambda a, b: [helper.make_node("Mul", [a, mask], [b])])


def deepstack_not_encoded(model: ModelProto, facts: Facts) -> None:
    mask = first_columns_only(model, facts)
    after_output(model, IMAGE_FEATURES, lambda a, b: [helper.make_node("Mul", [a, mask], [b])])


def mrope_axes_swapped(model: ModelProto, facts: Facts) -> None:
    axes = constant(model, "fault_axes", np.array([0, 2, 1]))
    before_input(model, POSITION_IDS, lambda a, b: [helper.make_node("Gather", [a, axes], [b], axis=0)])


def mrope_blocked(model: ModelProto, facts: Facts) -> None:
    """The table that says which axis turns which frequency, sorted: T T T … H H H … W W W."""
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and list(tensor.dims) == [facts.head_dim // 2]:
            axes = numpy_helper.to_array(tensor)
            if axes.dtype == np.int64 and set(axes.tolist()) == {0, 1, 2}:
                tensor.CopyFrom(numpy_helper.from_array(np.sort(axes), tensor.name))
                return
    raise NotThere("no int64 table of M-RoPE axes, one for each frequency")


def half_pixel_interpolation(model: ModelProto, facts: Facts) -> None:
    """align_corners=False: patch i reads at `(i + 0.5) * side / size - 0.5`, not at `i * (side - 1) / (size - 1)`."""
    makers = {output: node for node in model.graph.node for output in node.output}
    floors = [node for node in model.graph.node if node.op_type == "Floor"]
    sources = {node.input[0] for node in floors if makers.get(node.input[0], NodeProto()).op_type == "Div"}
    if len(sources) != 2:
        raise NotThere(f"{len(sources)} interpolation coordinates (a Floor after a Div), expected one for each axis")
    table = next(one for one in model.graph.initializer if one.name.endswith("pos_embed.weight"))
    side = round(table.dims[0] ** 0.5)
    half, one, zero, most, sides = (
        constant(model, f"fault_{name}", np.array(value, np.float32))
        for name, value in {"half": 0.5, "one": 1, "zero": 0, "most": side - 1, "side": side}.items()
    )
    for source in sources:
        good, span = f"{source}_corners", makers[source].input[1]  # span = size - 1
        makers[source].output[0] = good
        steps = [
            ("Mul", [good, span], "spread"),
            ("Div", [f"{source}_spread", most], "index"),
            ("Add", [f"{source}_index", half], "center"),
            ("Mul", [f"{source}_center", sides], "scaled"),
            ("Add", [span, one], "size"),
            ("Div", [f"{source}_scaled", f"{source}_size"], "edge"),
            ("Sub", [f"{source}_edge", half], "unclipped"),
        ]
        nodes = [helper.make_node(op, inputs, [f"{source}_{output}"]) for op, inputs, output in steps]
        nodes.append(helper.make_node("Clip", [f"{source}_unclipped", zero, most], [source]))
        at = list(model.graph.node).index(makers[source]) + 1
        for offset, node in enumerate(nodes):
            model.graph.node.insert(at + offset, node)


FAULTS = [
    Fault("deepstack-dropped", DECODER, deepstack_dropped, "decoder", "DeepStack maps dropped"),
    Fault("deepstack-not-encoded", VISION_ENCODER, deepstack_not_encoded, "vision", "DeepStack maps missing"),
    Fault("mrope-blocked", DECODER, mrope_blocked, "decoder", "blocked instead of interleaved (decoder, M-RoPE)"),
    Fault("mrope-axes-swapped", DECODER, mrope_axes_swapped, "decoder", "rows and columns swapped"),
    Fault("half-pixel-interpolation", VISION_ENCODER, half_pixel_interpolation, "vision", "align_corners=False"),
]
