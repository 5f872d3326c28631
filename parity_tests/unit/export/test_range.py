"""Large activations: half precision stays within its profile where norms and MLPs in half precision would overflow.

onnxruntime's CPU provider computes products of half precision in float32 and keeps the result in float32 if the next
operator reads it so. Tests that are about rounding therefore write every product out: float32, then a cast.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import (
    ATTENTION_MASK,
    DECODER,
    IMAGE_FEATURES,
    IMAGE_GRID_THW,
    INPUTS_EMBEDS,
    LOGITS,
    OUT_OF_RANGE,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION_ENCODER,
    Facts,
    past_name,
)
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.submodules.half_range import HEADROOM
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.runtime.session import Sessions

from ...faults.catalogue import Fault, change_graph
from ...faults.graphs import RMS_NORMS
from ...fixtures.loud_checkpoint import write_loud_checkpoint
from ...harness.judging.outcome import Outcome
from ...harness.sides.pytorch.reference import Reference
from ...harness.verify import open_bench, run

LARGEST = 65504.0  # of IEEE binary16
LARGEST_HIDDEN = LARGEST * HEADROOM
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


def test_the_activations_are_loud(loud: Path) -> None:
    """What goes through the layers is representable in half precision, and its squares are not. The hidden values of
    the MLPs exceed it several times."""
    reference = Reference(loud)
    largest: dict[str, float] = {}

    def note(tower: str) -> Any:
        def see(module: Any, given: tuple[torch.Tensor, ...], output: Any) -> None:
            largest[tower] = max(largest.get(tower, 0.0), float(given[0].abs().max()))

        return see

    model = reference.model.model
    towers = {"vision": (model.visual.blocks, "linear_fc2"), "decoder": (model.language_model.layers, "down_proj")}
    for tower, (layers, last) in towers.items():
        for layer in layers:
            layer.register_forward_hook(note(tower))
            getattr(layer.mlp, last).register_forward_hook(note(f"{tower}, MLP"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 1536, generator=generator).numpy()
    reference.vision(pixels, torch.tensor([[1, 8, 8]]).numpy())
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        reference.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for tower in towers:
        assert math.sqrt(LARGEST) < largest[tower] < LARGEST, f"{tower}: {largest[tower]}"
        assert 2e5 < largest[f"{tower}, MLP"] < LARGEST_HIDDEN, f"{tower}, MLP: {largest[f'{tower}, MLP']}"


def test_half_precision_stays_within_its_profile(half: Path, loud: Path) -> None:
    assert [outcome.message for outcome in outcomes(half, loud) if not outcome.passed] == []


def test_half_precision_stays_within_its_profile_where_products_are_rounded(
    half: Path, loud: Path, tmp_path: Path
) -> None:
    rounded = half
    for graph in (VISION_ENCODER, DECODER):
        fault = Fault(f"rounded-{graph}", "", "", change=partial(change_graph, graph, products_in_half))
        rounded = fault.plant(rounded, tmp_path / graph)
    assert [outcome.message for outcome in outcomes(rounded, loud) if not outcome.passed] == []


@pytest.mark.parametrize(("graph", "stage"), [(DECODER, "decoder"), (VISION_ENCODER, "vision")])
def test_mlps_without_headroom_would_overflow_loudly(
    graph: str, stage: str, half: Path, loud: Path, tmp_path: Path
) -> None:
    """The proof that the test above can fail, and that no artifact answers from infinities: its guard refuses."""

    def change(model: onnx.ModelProto, facts: Facts) -> None:
        products_in_half(model, facts)
        assert remove_headroom(model) > 0

    broken = Fault("no-headroom", stage, "", change=partial(change_graph, graph, change)).plant(half, tmp_path / "it")
    results = [outcome for outcome in outcomes(broken, loud) if outcome.stage == stage]
    assert results and not any(outcome.passed for outcome in results)
    with pytest.raises(ArtifactError, match=f"{graph}: {OUT_OF_RANGE}"):
        run_once(broken, graph)


def run_once(artifact: Path, graph: str) -> None:
    """Run one graph of an artifact on small random inputs."""
    sessions = Sessions(open_artifact(artifact))
    generator = np.random.default_rng(0)
    facts = sessions.facts
    if graph == VISION_ENCODER:
        pixels = generator.standard_normal((64, facts.patch_dim), np.float32)
        feeds = {PIXEL_VALUES: pixels, IMAGE_GRID_THW: np.array([[1, 8, 8]])}
        sessions.run(graph, feeds, [IMAGE_FEATURES])
        return
    past = np.zeros((1, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
    cache = {past_name(layer, part): past for layer in range(facts.num_hidden_layers) for part in ("key", "value")}
    feeds = {
        INPUTS_EMBEDS: 64 * generator.standard_normal((1, 9, facts.wide_size), np.float32),
        ATTENTION_MASK: np.ones((1, 9), np.int64),
        POSITION_IDS: np.broadcast_to(np.arange(9), (3, 1, 9)),
        **cache,
    }
    sessions.run(graph, feeds, [LOGITS])


def products_in_half(model: onnx.ModelProto, facts: Facts) -> None:
    """Every product of half precision in float32, its result rounded: what processors with such kernels compute."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        result = node.output[0]
        wide = [f"{result}_input_{index}" for index in range(len(node.input))]
        casts = [
            helper.make_node("Cast", [x], [y], to=TensorProto.FLOAT) for x, y in zip(node.input, wide, strict=True)
        ]
        node.input[:], node.output[:] = wide, [f"{result}_wide"]
        nodes += [*casts, node, helper.make_node("Cast", [f"{result}_wide"], [result], to=TensorProto.FLOAT16)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def remove_headroom(model: onnx.ModelProto) -> int:
    """Replace by 1 the factors that make room in half precision; returns their number."""
    factors = [
        tensor
        for tensor in model.graph.initializer
        if not tensor.dims
        and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        and numpy_helper.to_array(tensor) in (HEADROOM, 1 / HEADROOM)
    ]
    for tensor in factors:
        one = np.ones((), helper.tensor_dtype_to_np_dtype(tensor.data_type))
        tensor.CopyFrom(numpy_helper.from_array(one, tensor.name))
    return len(factors)


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
