"""Large activations: half precision stays finite and within its profile where norms in half precision overflow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qwen3vl_export.contract import DECODER, VISION_ENCODER, Facts
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.recipe import load_recipe

from ...faults.catalogue import Fault, change_graph
from ...faults.graphs import RMS_NORMS
from ...fixtures.loud_checkpoint import write_loud_checkpoint
from ...harness.judging.outcome import Outcome
from ...harness.sides.reference import Reference
from ...harness.verify import open_bench, run

LARGEST = 65504.0  # of IEEE binary16
CASES = ("users-case-16x16-after-24x24", "two-images-of-different-size", "text-only", "batch-of-different-sizes")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loud_checkpoint(tmp_path_factory.mktemp("loud"))


def built(work: Path, loud: Path, dtype: str, graphs: str) -> Path:
    recipe = work / f"{dtype}.yaml"
    keys = f"checkpoint: {{source: {loud}}}\ndtype: {dtype}\ngraphs: [{graphs}]\nparity: {{matrix: quick}}\n"
    recipe.write_text(keys, "utf-8")
    return build(load_recipe(recipe), out=work / dtype, log=lambda line: None)


@pytest.fixture(scope="module")
def half(loud: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("half"), loud, "float16", f"{VISION_ENCODER}, {DECODER}")


def outcomes(artifact: Path, loud: Path) -> list[Outcome]:
    bench = open_bench(artifact, "quick", loud)
    results = run(bench, "quick", only=lambda check: check.stage in ("vision", "decoder"), cases=CASES).outcomes
    assert results
    return list(results)


def test_the_streams_are_loud(loud: Path) -> None:
    """What goes through the layers is representable in half precision, and its squares are not."""
    reference = Reference(loud)
    largest: dict[str, float] = {}

    def note(tower: str) -> Any:
        def see(module: Any, given: tuple[torch.Tensor, ...], output: Any) -> None:
            largest[tower] = max(largest.get(tower, 0.0), float(given[0].abs().max()))

        return see

    model = reference.model.model
    for tower, layers in (("vision", model.visual.blocks), ("decoder", model.language_model.layers)):
        for layer in layers:
            layer.register_forward_hook(note(tower))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 1536, generator=generator).numpy()
    reference.vision(pixels, torch.tensor([[1, 8, 8]]).numpy())
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        reference.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for tower, value in largest.items():
        assert math.sqrt(LARGEST) < value < LARGEST, f"{tower}: {value}"


def test_half_precision_stays_within_its_profile(half: Path, loud: Path) -> None:
    assert [outcome.message for outcome in outcomes(half, loud) if not outcome.passed] == []


def test_bfloat16_stays_within_its_profile(loud: Path, tmp_path: Path) -> None:
    artifact = built(tmp_path, loud, "bfloat16", DECODER)
    assert [outcome.message for outcome in outcomes(artifact, loud) if not outcome.passed] == []


@pytest.mark.parametrize(("graph", "stage"), [(DECODER, "decoder"), (VISION_ENCODER, "vision")])
def test_norms_in_half_precision_would_overflow(graph: str, stage: str, half: Path, loud: Path, tmp_path: Path) -> None:
    """The proof that the tests above can fail: the same graph, its norms squaring in half precision."""
    fault = Fault("norms-in-half", stage, "", change=lambda artifact: change_graph(graph, norms_in_half, artifact))
    broken = fault.plant(half, tmp_path / "broken")
    results = [outcome for outcome in outcomes(broken, loud) if outcome.stage == stage]
    assert results and not any(outcome.passed for outcome in results)


def norms_in_half(model: onnx.ModelProto, facts: Facts) -> None:
    """Every norm written out, its squares in half precision. They are cast there and back: onnxruntime would compute
    operators of that dtype in float32 where it has no kernel for them."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += in_half(node, model) if node.op_type in (*RMS_NORMS, "LayerNormalization") else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def in_half(norm: NodeProto, model: onnx.ModelProto) -> list[NodeProto]:
    name = norm.output[0]
    epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    for suffix, value in (("axis", np.array([-1])), ("epsilon", np.array(epsilon, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{suffix}"))
    made: list[NodeProto] = []

    def add(op: str, inputs: list[str], suffix: str, **attributes: int) -> str:
        made.append(helper.make_node(op, inputs, [f"{name}_{suffix}"], **attributes))
        return f"{name}_{suffix}"

    x, weight = norm.input[0], norm.input[1]
    if norm.op_type.startswith("Skip"):
        x, weight = norm.output[3], norm.input[2]
        made.append(helper.make_node("Add", norm.input[:2], [x]))
    wide = add("Cast", [x], "wide", to=TensorProto.FLOAT)
    if norm.op_type == "LayerNormalization":
        wide = add("Sub", [wide, add("ReduceMean", [wide, f"{name}_axis"], "center")], "centered")
    half = add("Cast", [add("Mul", [wide, wide], "squares")], "half", to=TensorProto.FLOAT16)
    mean = add("ReduceMean", [add("Cast", [half], "back", to=TensorProto.FLOAT), f"{name}_axis"], "mean")
    root = add("Sqrt", [add("Add", [mean, f"{name}_epsilon"], "sum")], "root")
    unit = add("Cast", [add("Div", [wide, root], "unit")], "unit_half", to=TensorProto.FLOAT16)
    if norm.op_type == "LayerNormalization":
        unit, weight = add("Mul", [unit, weight], "scaled"), norm.input[2]
        made.append(helper.make_node("Add", [unit, weight], [name]))
    else:
        made.append(helper.make_node("Mul", [unit, weight], [name]))
    return made
