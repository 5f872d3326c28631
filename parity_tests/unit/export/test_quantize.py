"""Quantized graphs: they compute what their integers stand for, in both targets, for every method and for experts."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from pydantic import TypeAdapter

from qwen3vl_export.contract import Graph
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.quantize import quantize, storage_of, store_as
from qwen3vl_export.exporter.quantize.experts import build_qmoe
from qwen3vl_export.exporter.rewrites.products import fuse_products
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.weights import WeightFile, attach
from qwen3vl_export.exporter.weights.blockwise import pack_integers, quantize_nearest
from qwen3vl_export.exporter.weights.packing import Blockwise, PerColumn
from qwen3vl_export.recipe.quantize import Int4, MethodSettings
from qwen3vl_export.runtime.session import load_session, session_options

from ...fixtures.moe_checkpoint import write_moe_checkpoint
from ...fixtures.paths import TINY
from ...fixtures.traces import build_submodule, trace


@cache
def trace_skeleton(
    checkpoint: Path, graph: str, target: str, dtype: torch.dtype = torch.float32
) -> tuple[Graph, ir.Model]:
    """A graph up to where quantization begins, traced once for all tests."""
    submodule = build_submodule(open_checkpoint(str(checkpoint)), graph, target, dtype)
    return submodule.graph, optimize(simplify(trace(submodule, dtype)), target)


def build_graph(
    work: Path,
    graph: str,
    target: str = "ort",
    checkpoint: Path = TINY,
    method: str = "none",
    stored: ir.DataType = ir.DataType.FLOAT,
    **settings: Any,
) -> onnx.ModelProto:
    """Build one graph, quantized by a method and its settings; other weights are stored as `stored`."""
    if graph == "vision_encoder" and method == "int4":
        settings["accept_error"] = True
    quantization = TypeAdapter(MethodSettings).validate_python({"method": method, **settings})
    contract, model = trace_skeleton(checkpoint, graph, target)
    folder = work / f"{graph}-{target}-{method}"
    folder.mkdir(exist_ok=True)
    with WeightFile.create(folder, graph) as data:
        model = model.clone()
        if target == "ort":
            model = fuse_products(model, partial(storage_of, settings=quantization))
        model = quantize(model, quantization, target)
        model = model if stored == ir.DataType.FLOAT else store_as(model, stored)
        written = attach(model, contract, open_checkpoint(str(checkpoint)), data)
        ir.save(written, folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe_checkpoint(tmp_path_factory.mktemp("moe"))


def open_model(model: onnx.ModelProto) -> Any:
    """A session as the runtime opens it, so that products of integers are exact on every processor."""
    return load_session(Path(), session_options(model.graph.name, None), model.SerializeToString())


def run_seeded(model: onnx.ModelProto) -> np.ndarray:
    """The first output for seeded inputs."""
    session = open_model(model)
    sizes = {"batch_size": 2, "sequence_length": 5, "past_sequence_length": 0, "total_sequence_length": 5}
    sizes |= {"num_patches": 64 + 24, "num_images": 2}
    generator = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [sizes.get(dim, dim) for dim in value.shape]
        feeds[value.name] = generator.standard_normal(shape).astype(np.float32)
        if value.type == "tensor(int64)":
            feeds[value.name] = np.ones(shape, np.int64) if shape else np.array(0, np.int64)
    if "image_grid_thw" in feeds:
        feeds["image_grid_thw"] = np.array([[1, 8, 8], [1, 4, 6]])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def loop_bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The bodies of a graph's loops."""
    return [node.attribute[0].g for node in model.graph.node if node.op_type == "Loop"]


def dequantize_weights(plain: onnx.ModelProto, quantized: onnx.ModelProto, packing: Any) -> onnx.ModelProto:
    """Replace each weight of the float graph that is quantized in the other by its dequantized values."""
    names = {t.name.removesuffix(".quantized") for t in quantized.graph.initializer if t.name.endswith(".quantized")}
    assert names
    columns = {node.input[1] for node in plain.graph.node if node.op_type == "MatMul"}
    columns |= {node.input[0] for body in loop_bodies(plain) for node in body.node if node.op_type == "Gather"}
    for tensor in plain.graph.initializer:
        if tensor.name in names:
            values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            rows = values.mT if tensor.name in columns else values
            dequantized = packing.pack(rows.flatten(0, -2))[1].reshape(rows.shape)
            stored = dequantized.mT if tensor.name in columns else dequantized
            tensor.CopyFrom(numpy_helper.from_array(stored.contiguous().numpy(), tensor.name))
            names.remove(tensor.name)
    assert not names
    return plain


@pytest.mark.parametrize("graph", ["vision_encoder", "decoder_model_merged", "embed_tokens"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_graph_computes_what_its_integers_stand_for(graph: str, symmetric: bool, method: str, tmp_path: Path) -> None:
    quantized = build_graph(tmp_path, graph, method=method, symmetric=symmetric, algorithm="search", accuracy_level=1)
    plain = build_graph(tmp_path, graph)
    unquantized = run_seeded(plain)
    packing = Blockwise(int(method[3]), 32, symmetric, True, ir.DataType.FLOAT)
    expected, computed = run_seeded(dequantize_weights(plain, quantized, packing)), run_seeded(quantized)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-4)
    assert np.abs(computed - unquantized).max() > 1e-3, "nothing was quantized"


@pytest.mark.parametrize("graph", ["vision_encoder", "decoder_model_merged", "embed_tokens"])
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_the_portable_graph_computes_the_same(graph: str, method: str, tmp_path: Path) -> None:
    ort_graph, portable_graph = (
        build_graph(tmp_path, graph, target, method=method, accuracy_level=1) for target in ("ort", "portable")
    )
    assert {opset.domain for opset in portable_graph.opset_import} == {""}
    np.testing.assert_allclose(run_seeded(portable_graph), run_seeded(ort_graph), rtol=0, atol=2e-4)


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("method", ["int8", "int4", "int8_dynamic"])
def test_other_weights_may_be_stored_as_the_checkpoint_has_them(method: str, target: str, tmp_path: Path) -> None:
    """The checkpoint is bfloat16: storing its numbers in it changes none; scales are not its numbers."""
    float32, bfloat16 = (
        build_graph(tmp_path, "decoder_model_merged", target, method=method, stored=stored)
        for stored in (ir.DataType.FLOAT, ir.DataType.BFLOAT16)
    )
    assert any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in bfloat16.graph.initializer)
    np.testing.assert_array_equal(run_seeded(bfloat16), run_seeded(float32))


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("graph", ["vision_encoder", "decoder_model_merged"])
@pytest.mark.parametrize("activations", ["per_tensor", "per_token"])
def test_dynamic_products_are_close(activations: str, graph: str, target: str, tmp_path: Path) -> None:
    """Activations are rounded as well, so dequantized weights give only approximately the same result."""
    quantized = build_graph(tmp_path, graph, target, method="int8_dynamic", activations=activations)
    assert target == "ort" or {opset.domain for opset in quantized.opset_import} == {""}
    plain = build_graph(tmp_path, graph, target)
    expected, computed = (
        run_seeded(dequantize_weights(plain, quantized, PerColumn(ir.DataType.FLOAT))),
        run_seeded(quantized),
    )
    assert np.linalg.norm(computed - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("gain", [1000.0, 0.0], ids=["loud", "zero"])
def test_tokens_with_scales_of_their_own_do_not_blur_others(gain: float, target: str, tmp_path: Path) -> None:
    """The second picture is a thousand times as bright, or black: the first one's features are as close as before."""
    expected = run_pictures(build_graph(tmp_path, "vision_encoder"), gain)
    first = slice(0, 16)  # tokens of the first picture
    errors = {}
    for activations in ("per_tensor", "per_token"):
        graph = build_graph(tmp_path, "vision_encoder", target, method="int8_dynamic", activations=activations)
        features, usual = run_pictures(graph, gain), run_pictures(graph, 1.0)
        assert np.isfinite(features).all()
        errors[activations] = [np.linalg.norm(values[first] - expected[first]) for values in (usual, features)]
    usual, changed = errors["per_token"]
    assert changed < 1.5 * usual
    usual, changed = errors["per_tensor"]
    assert changed > 3 * usual or not gain, "nothing was loud"


def run_pictures(model: onnx.ModelProto, gain: float) -> np.ndarray:
    """Features of two pictures of noise, the second one multiplied."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (64 + 24, 1536)).astype(np.float32)
    pixels[64:] *= gain
    session = open_model(model)
    features: np.ndarray = session.run(
        None, {"pixel_values": pixels, "image_grid_thw": np.array([[1, 8, 8], [1, 4, 6]])}
    )[0]
    return features


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
def test_experts_compute_what_their_integers_stand_for(symmetric: bool, tmp_path: Path, moe: Path) -> None:
    settings = {"method": "int4", "symmetric": symmetric, "accuracy_level": 1}
    quantized = build_graph(tmp_path, "decoder_model_merged", checkpoint=moe, **settings)
    plain = build_graph(tmp_path, "decoder_model_merged", checkpoint=moe)
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QMoE") == 3 and "MoE" not in kinds
    assert any(tensor.name.endswith("mlp.gate.weight") for tensor in quantized.graph.initializer), "router is kept"
    packing = Blockwise(4, 32, symmetric, False, ir.DataType.FLOAT)
    expected, computed = run_seeded(dequantize_weights(plain, quantized, packing)), run_seeded(quantized)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
@pytest.mark.parametrize(("method", "block_size"), [("int4", 32), ("int4", 128), ("int8", 64)])
def test_experts_in_standard_operators_compute_what_their_integers_stand_for(
    method: str, block_size: int, symmetric: bool, tmp_path: Path, moe: Path
) -> None:
    """Blocks of 128 make an odd number of zero points in a row; dense products, which would have none, are kept."""
    keep = ("lm_head.weight", "*.self_attn.*", "*.mlp.*_proj.weight")
    settings = {"method": method, "symmetric": symmetric, "block_size": block_size, "keep": keep}
    quantized = build_graph(tmp_path, "decoder_model_merged", "portable", moe, **settings)
    plain = build_graph(tmp_path, "decoder_model_merged", "portable", moe)
    assert {opset.domain for opset in quantized.opset_import} == {""} and len(loop_bodies(quantized)) == 3
    names = [tensor.name for tensor in quantized.graph.initializer if ".experts." in tensor.name]
    assert len(names) == 6 * (2 if symmetric else 3)
    unquantized = run_seeded(plain)
    packing = Blockwise(int(method[3]), block_size, symmetric, False, ir.DataType.FLOAT)
    expected, computed = run_seeded(dequantize_weights(plain, quantized, packing)), run_seeded(quantized)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-4)
    assert np.abs(computed - unquantized).max() > 1e-3, "nothing was quantized"


@pytest.mark.parametrize("target", ["ort", "portable"])
def test_experts_that_no_operator_takes_quantized_are_named(target: str, tmp_path: Path, moe: Path) -> None:
    with pytest.raises(BuildError, match=r"layers\.\d\.mlp\.experts\..*: experts are quantized by int8 and int4 only"):
        build_graph(tmp_path, "decoder_model_merged", target, moe, "int8_dynamic")


def test_experts_whose_rows_are_no_whole_blocks_are_named() -> None:
    shapes = {"x": (4, 48), "router": (4, 2), "gate_up": (2, 64, 48), "down": (2, 48, 32)}
    float32 = ir.TensorType(ir.DataType.FLOAT)
    values = {
        name: ir.Value(name=f"weights/{name}", shape=ir.Shape(shape), type=float32) for name, shape in shapes.items()
    }
    x, router, gate_up, down = values.values()
    node = ir.node("MoE", [x, router, gate_up, None, down], domain="com.microsoft")
    model = ir.Model(ir.Graph([*values.values()], node.outputs, nodes=[node], name="g"), ir_version=10)
    with pytest.raises(
        BuildError, match=r"gate_up: rows of 48 values are no multiple of block_size 32\. Choose a smaller"
    ):
        build_qmoe(model, node, Int4(method="int4"))


def test_kept_weights_stay_and_others_do_not(tmp_path: Path) -> None:
    model = build_graph(tmp_path, "decoder_model_merged", method="int4", keep=("lm_head.weight", "*.layers.0.*"))
    names = {tensor.name for tensor in model.graph.initializer}
    assert "lm_head.weight" in names and "language_model.layers.0.mlp.gate_up_proj.weight" in names
    assert "language_model.layers.1.mlp.gate_up_proj.weight.quantized" in names
    assert "language_model.layers.1.mlp.gate_up_proj.weight" not in names


def test_a_pattern_that_keeps_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"decoder_model_merged: keep: lm_haed\.\* matches none of its weights"):
        build_graph(tmp_path, "decoder_model_merged", method="int4", keep=("lm_haed.*",))


@pytest.mark.parametrize("bits", [4, 8])
def test_search_is_never_worse_and_mostly_better(bits: int) -> None:
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) ** 3
    for symmetric in (True, False):
        plain, searched = (
            quantize_nearest(rows, bits, 32, symmetric, search, torch.float32) for search in (False, True)
        )
        errors = [(packed.dequantized - rows).reshape(64, 3, 32).square().sum(-1) for packed in (plain, searched)]
        assert (errors[1] <= errors[0] + 1e-12).all()
        assert errors[1].sum() < errors[0].sum()


def test_blocks_of_zeros_and_values_that_integers_hold_are_exact() -> None:
    rows = torch.zeros(2, 64)
    rows[1, :16] = torch.arange(-8.0, 8.0)
    for symmetric in (True, False):
        packed = quantize_nearest(rows, 4, 16, symmetric, False, torch.float32)
        assert torch.equal(packed.dequantized, rows)


def test_halves_of_a_byte_are_packed_lower_first() -> None:
    assert pack_integers(torch.tensor([[1, 2, 15]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x0F]]
