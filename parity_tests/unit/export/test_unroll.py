"""A stack unrolled from a few traced layers is the graph that tracing all of them gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from qwen3vl_export import contract
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.checkpoint import Checkpoint
from qwen3vl_export.exporter.submodules import build_submodule
from qwen3vl_export.exporter.trace import trace
from qwen3vl_export.exporter.unroll import Stack, unroll
from qwen3vl_export.exporter.weights.inputs import WEIGHTS, weight_inputs

from ...fixtures.official import config
from ...fixtures.published_config import Config


def meaning(model: ir.Model) -> dict[str, str]:
    """For each output a hash of everything it is computed from: operators, attributes, constants, names of inputs."""
    known: dict[ir.Value, str] = {value: f"input {value.name} {value.shape}" for value in model.graph.inputs}

    def of(value: ir.Value | None) -> str:
        if value is None:
            return "none"
        if value not in known and value.const_value is not None:
            known[value] = hashlib.sha256(value.const_value.tobytes()).hexdigest() + str(value.const_value.shape)
        return known[value]

    for node in model.graph:
        attributes = sorted(
            (name, attr.value.tobytes() if attr.type == ir.AttributeType.TENSOR else str(attr.value))
            for name, attr in node.attributes.items()
        )
        text = repr((node.op_identifier(), attributes, [of(value) for value in node.inputs]))
        for index, value in enumerate(node.outputs):
            known[value] = hashlib.sha256(f"{index} {text}".encode()).hexdigest()
    return {str(value.name): known[value] for value in model.graph.outputs}


def sized(size: str, layers: int, depth: int, taps: list[int]) -> Config:
    sizes = config(size, layers=layers, depth=depth)
    sizes.vision_config.deepstack_visual_indexes = taps
    return sizes


DENSE = sized("2b", 8, 9, [2, 4, 7])
ROUTED = sized("30b-a3b", 7, 9, [2, 4, 7])


@pytest.mark.parametrize(
    ("graph", "sizes", "target"),
    [
        (contract.DECODER, DENSE, "ort"),
        (contract.DECODER, ROUTED, "portable"),
        (contract.VISION_ENCODER, DENSE, "ort"),
    ],
    ids=["decoder", "experts", "tower"],
)
def test_unrolling_is_tracing_everything(graph: str, sizes: Config, target: str) -> None:
    checkpoint = Checkpoint(Path(), "random", "local", sizes)
    short, full = (build_submodule(checkpoint, graph, target, torch.float32, all_layers=all_) for all_ in (False, True))
    assert short.stack is not None and short.stack.traced == 6 and full.stack is None
    unrolled, traced = (trace(submodule, torch.float32) for submodule in (short, full))
    assert meaning(unrolled) == meaning(traced)
    for left, right in ((unrolled.graph.inputs, traced.graph.inputs), (unrolled.graph.outputs, traced.graph.outputs)):
        assert {(value.name, value.dtype, str(value.shape)) for value in left} == {
            (value.name, value.dtype, str(value.shape)) for value in right
        }
    assert [value.name for value in weight_inputs(unrolled)] == [value.name for value in weight_inputs(traced)]


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (6, {}),
        (8, {"mlp_only_layers": [7]}),
        (8, {"decoder_sparse_step": 2}),
    ],
    ids=["too few", "one dense", "every other dense"],
)
def test_layers_of_several_kinds_are_all_traced(layers: int, changes: dict[str, object]) -> None:
    sizes = config("30b-a3b", layers=layers, depth=4)
    for name, value in changes.items():
        setattr(sizes.text_config, name, value)
    submodule = build_submodule(Checkpoint(Path(), "random", "local", sizes), contract.DECODER, "ort", torch.float32)
    assert submodule.stack is None and len(submodule.module.language_model.layers) == layers  # type: ignore[union-attr,arg-type]


def chain(ops: list[str], scale: list[float]) -> ir.Model:
    """hidden -> op(hidden * constant + weight of the layer) -> …"""
    hidden = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    inputs, nodes, initializers = [hidden], [], []
    for layer, (op, factor) in enumerate(zip(ops, scale, strict=True)):
        name = f"{WEIGHTS}layers.{layer}.bias"
        inputs.append(ir.Value(name=name, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT)))
        constant = ir.Value(name=f"c{layer}", const_value=ir.tensor([factor], name=f"c{layer}"))
        initializers.append(constant)
        scaled = ir.node("Mul", [hidden, constant])
        moved = ir.node("Add", [scaled.outputs[0], inputs[-1]])
        nodes += [scaled, moved, ir.node(op, moved.outputs)]
        hidden = nodes[-1].outputs[0]
    hidden.name = "y"
    graph = ir.Graph(inputs, [hidden], nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="chain")
    return ir.Model(graph, ir_version=10)


STACK = Stack((f"{WEIGHTS}layers.",), layers=7, traced=4)


def test_a_chain_grows() -> None:
    grown = unroll(chain(["Relu"] * 4, [2.0] * 4), STACK)
    assert meaning(grown) == meaning(chain(["Relu"] * 7, [2.0] * 7))


@pytest.mark.parametrize(
    ("ops", "scale"),
    [(["Relu", "Relu", "Abs", "Relu"], [2.0] * 4), (["Relu"] * 4, [2.0, 2.0, 3.0, 2.0])],
    ids=["another operator", "another constant"],
)
def test_unlike_layers_are_an_error(ops: list[str], scale: list[float]) -> None:
    with pytest.raises(BuildError, match="chain: traced layers 1 and 2 are not alike"):
        unroll(chain(ops, scale), STACK)
