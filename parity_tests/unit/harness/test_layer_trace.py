"""A trace names the layer and the operator of a fault, and the stage of the build that introduced it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from parity_tests.faults.catalogue import FAULTS
from parity_tests.harness.diagnosis.layer_trace import Trail, trace_decoder, trace_layers, trace_vision
from parity_tests.harness.sides.artifact.probe import layers_of, module_of
from parity_tests.harness.sides.bench import Bench
from parity_tests.harness.verify import open_bench
from qwen3vl_export.contract import DECODER, VISION_ENCODER
from qwen3vl_export.manifest import MANIFEST

CASE = "two-images-of-different-size"


def trails(bench: Bench) -> dict[str, Trail]:
    case = next(case for case in bench.cases if case.name == CASE)
    return {trail.graph: trail for trail in trace_layers(bench, [], case)}


def plant(name: str, good: Path, tmp_path: Path) -> Bench:
    fault = next(fault for fault in FAULTS if fault.name == name)
    return open_bench(fault.plant(good, tmp_path / name), "quick")


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("language_model.layers.3.self_attn.q_norm.weight", "layers.3.self_attn.q_norm"),
        ("model.language_model.layers.3.self_attn.q_norm.weight", "layers.3.self_attn.q_norm"),
        ("model.layers.12.attn.q_proj.MatMul.weight_Q4", "layers.12.self_attn.q_proj"),
        ("visual.blocks.0.attn.qkv.bias", "blocks.0.attn.qkv"),
        ("language_model.layers.1.mlp.down_proj.weight.scales", "layers.1.mlp.down_proj"),
        ("lm_head.weight", "lm_head"),
        ("visual.merger.linear_fc1.weight", "merger.linear_fc1"),
        ("val_17", None),
        ("onnx::MatMul_1234", None),
    ],
)
def test_the_name_of_a_parameter_is_the_name_of_its_layer(parameter: str, module: str | None) -> None:
    assert module_of(parameter) == module


def test_every_layer_of_a_good_artifact_is_found_and_agrees(tiny_artifact: Path) -> None:
    for trail in trails(open_bench(tiny_artifact, "quick")).values():
        assert trail.first is None
        assert trail.unmatched == ()
        assert "values agree with PyTorch" in trail.message


@pytest.mark.parametrize(
    ("fault", "graph", "says"),
    [
        ("layer-duplicated", DECODER, "decoder layer 2, input_layernorm ("),
        ("corrupted-byte-sealed", DECODER, "decoder layer 2, mlp.down_proj ("),
        ("epsilon-1e-5", DECODER, "decoder layer 0, input_layernorm ("),
        ("qk-norm-skipped", DECODER, "decoder layer 0, self_attn."),
        ("gate-and-up-swapped", DECODER, "decoder layer 0, mlp.down_proj, its input (made by Mul)"),
        ("deepstack-dropped", DECODER, "decoder layer 1, input_layernorm"),
        ("lm-head-order", DECODER, "decoder, lm_head"),
        ("gelu-exact", VISION_ENCODER, "vision block 0, mlp.linear_fc2, its input (made by Gelu)"),
        ("attention-across-images", VISION_ENCODER, "vision block 0, attn.proj"),
        ("temporal-slice-dropped", VISION_ENCODER, "vision encoder, patch_embed.proj"),
    ],
)
def test_a_fault_is_found_where_it_is(fault: str, graph: str, says: str, tiny_artifact: Path, tmp_path: Path) -> None:
    by_graph = trails(plant(fault, tiny_artifact, tmp_path))
    assert by_graph[graph].message.startswith(says), by_graph[graph].message
    others = [trail for name, trail in by_graph.items() if name != graph]
    assert all(trail.first is None for trail in others)


def test_left_padding_is_not_compared(tiny_artifact: Path) -> None:
    bench = open_bench(tiny_artifact, "quick")
    case = next(case for case in bench.cases if case.name == "batch-of-different-sizes")
    trail = trace_decoder(bench, case)
    assert trail is not None
    assert trail.first is None, trail.message


def test_a_fault_in_the_runtime_is_in_no_layer(tiny_artifact: Path, tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "merge-blocks-ignored")
    bench = open_bench(tiny_artifact, "quick")
    case = next(case for case in bench.cases if case.name == CASE)
    with fault.during(bench):
        trail = trace_vision(bench, case)
    assert trail is not None
    assert trail.first is None


def test_the_stage_that_brought_it_in_is_named(tiny_artifact: Path, tmp_path: Path) -> None:
    """Stages before the fault agree; the first that has it is named, whatever comes after."""
    bad = plant("gelu-exact", tiny_artifact, tmp_path).artifact.root
    stages = [
        entry["stage"] for entry in json.loads((bad / MANIFEST).read_text("utf-8"))["graphs"][VISION_ENCODER]["stages"]
    ]
    for stage in stages[:-1]:
        source = bad if stage == "optimized" else tiny_artifact
        shutil.copytree(source / "onnx", bad / "stages" / stage)
    trail = trails(open_bench(bad, "quick"))[VISION_ENCODER]
    assert trail.stages == tuple(stages)
    assert "after optimized (simplified still agrees)" in trail.message
    for step, source in (("1-lower", tiny_artifact), ("2-fuse", bad), ("10-clean", bad)):
        shutil.copytree(source / "onnx", bad / "stages" / "optimized" / step)
    trail = trails(open_bench(bad, "quick"))[VISION_ENCODER]
    assert [stage for stage in trail.stages if "/" in stage] == [
        "optimized/1-lower",
        "optimized/2-fuse",
        "optimized/10-clean",
    ]
    assert "after optimized/2-fuse (optimized/1-lower still agrees)" in trail.message


def test_layers_that_lost_their_names_are_listed(tiny_artifact: Path, tmp_path: Path) -> None:
    """Another exporter's graph, one layer of which has lost its name."""
    copy = tmp_path / "other"
    shutil.copytree(tiny_artifact, copy)
    path = copy / "onnx" / f"{DECODER}.onnx"
    model = onnx.load(path, load_external_data=False)
    old, new = "language_model.layers.1.mlp.down_proj.weight", "onnx::MatMul_77"
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    onnx.save(model, path)
    trail = trails(open_bench(copy, "quick", check_files=False))[DECODER]
    assert trail.unmatched == ("layers.1.mlp.down_proj",)
    assert trail.first is None


def test_a_weight_that_is_carried_to_its_product_is_followed() -> None:
    weight = helper.make_tensor("layers.0.mlp.up_proj.weight", onnx.TensorProto.FLOAT, [2, 2], [1.0, 2, 3, 4])
    nodes = [
        helper.make_node("Transpose", ["layers.0.mlp.up_proj.weight"], ["transposed"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "transposed"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [weight])
    (layer,) = layers_of(helper.make_model(graph))
    assert (layer.op, layer.input, layer.output) == ("MatMul", "x", "y")


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_a_product_with_a_scale_for_each_token_is_a_layer_with_its_division_and_multiplication(has_bias: bool) -> None:
    weight = helper.make_tensor("layers.0.mlp.up_proj.weight", onnx.TensorProto.FLOAT, [2, 2], [1.0, 2, 3, 4])
    bias = helper.make_tensor("layers.0.mlp.up_proj.bias", onnx.TensorProto.FLOAT, [2], [1.0, 2])
    nodes = [
        helper.make_node("Div", ["x", "largest"], ["divided"]),
        helper.make_node("MatMul", ["divided", weight.name], ["product"]),
        helper.make_node("Mul", ["product", "largest"], ["y"]),
        *([helper.make_node("Add", ["y", bias.name], ["z"])] if has_bias else []),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [weight, *([bias] if has_bias else [])])
    (layer,) = layers_of(helper.make_model(graph))
    assert (layer.op, layer.input, layer.output) == (("Add", None, "z") if has_bias else ("MatMul", "x", "y"))
