"""Quantized weights are dequantized by either target's operators, and a wrong one is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from parity_tests.harness.checks.weights import block_errors
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.sides.artifact import operator
from parity_tests.harness.sides.artifact.dequantization import dequantized_weights
from parity_tests.harness.sides.artifact.operator import block_rows, columns_of, open_operator, product_rows
from parity_tests.harness.sides.artifact.probe import module_of
from qwen3vl_export.contract import EMBED_TOKENS
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.promise import WEIGHTS

from ...fixtures.paths import TINY
from ..export.test_quantize import build_graph

GRAPH = "decoder_model_merged"
PROFILES = {"int8": "int8", "int4": "int4", "int8_dynamic": "int8"}


def write_graph(work: Path, target: str, method: str, graph: str = GRAPH, **settings: Any) -> Path:
    build_graph(work, graph, target, method=method, **settings)
    return work / f"{graph}-{target}-{method}" / "model.onnx"


def checkpoint_weights() -> dict[str | None, np.ndarray]:
    """Every matrix [N, K] of the checkpoint, by module."""
    checkpoint = open_checkpoint(str(TINY))
    weights = {module_of(name): checkpoint.read(name).float().numpy() for name in checkpoint.tensors}
    return {**weights, "lm_head": weights["embed_tokens"]}  # they are tied


@pytest.mark.parametrize("method", PROFILES)
@pytest.mark.parametrize("target", ["ort", "portable"])
def test_every_product_is_read_back(target: str, method: str, tmp_path: Path) -> None:
    truth = checkpoint_weights()
    weights = list(dequantized_weights(write_graph(tmp_path, target, method)))
    assert len(weights) > 20
    worst = {name: block_errors(rows, truth[module_of(name)], block).max() for name, block, rows in weights}
    (rule,) = (rule for rule in load_profile(PROFILES[method]).rules[WEIGHTS] if rule.measure == "worst_block_error")
    assert rule.holds(max(worst.values())), worst


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("target", ["ort", "portable"])
def test_every_row_of_a_table_is_read_back(target: str, method: str, symmetric: bool, tmp_path: Path) -> None:
    truth = checkpoint_weights()["embed_tokens"]
    path = write_graph(tmp_path, target, method, EMBED_TOKENS, symmetric=symmetric)
    ((_, block, rows),) = dequantized_weights(path)
    (rule,) = (rule for rule in load_profile(method).rules[WEIGHTS] if rule.measure == "worst_block_error")
    assert rule.holds(block_errors(rows, truth, block).max())
    assert {node.domain for node in onnx.load(path).graph.node} == {""}


@pytest.mark.parametrize("method", PROFILES)
def test_a_scale_that_is_twice_as_large_is_found(method: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path, "portable", method)
    good = {parameter: rows for parameter, _, rows in dequantized_weights(path)}
    model = onnx.load(path)
    scales = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("down_proj.weight.scales"))
    changed = numpy_helper.to_array(scales).copy()
    changed.flat[3] *= 2
    scales.CopyFrom(numpy_helper.from_array(changed, scales.name))
    onnx.save(model, path)
    off = [name for name, _, rows in dequantized_weights(path) if np.abs(rows - good[name]).max() > 0]
    assert off == [scales.name.replace(".scales", ".quantized")]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_points", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("width", [64, 96, 80])  # blocks of 32: an even number, an odd one, a last one that is shorter
def test_blocks_are_read_as_the_operator_computes(bits: int, with_points: bool, kind: int, width: int) -> None:
    product, stored = random_product(bits, with_points, kind, width)
    run = open_operator(product, "x", TensorProto.FLOAT, stored, Path("model.onnx"), "scales")
    expected = columns_of(run, np.arange(width), width)
    blocks = block_rows(product, stored, Path("model.onnx"))
    assert blocks is not None and blocks.shape == (24, width)
    tolerance = 1e-5 if kind == TensorProto.FLOAT else 1e-2
    np.testing.assert_allclose(blocks, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(product_rows(product, stored, Path("model.onnx")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("external", [False, True])
def test_a_large_weight_is_dequantized_some_rows_at_a_time(
    bits: int, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    product, stored = random_product(bits, True, TensorProto.FLOAT, 96)
    expected = block_rows(product, stored, path)
    assert expected is not None
    if external:
        graph = helper.make_graph([product], "graph", [], [], [*stored.values()])
        data = {"save_as_external_data": True, "location": "data", "size_threshold": 0}
        onnx.save(helper.make_model(graph), path, **data)
        (tmp_path / "second_name").hardlink_to(tmp_path / "data")
        stored = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    monkeypatch.setattr(operator, "VALUES", 5 * 96)  # 24 rows are four parts of 5 and one of 4
    np.testing.assert_array_equal(block_rows(product, stored, path), expected)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_what_the_operator_does_not_compute_with_is_not_taken(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever `DequantizeLinear` says something else, even in one block, the identity matrix decides."""
    product, stored = random_product(4, True, TensorProto.FLOAT, 96)
    expected = product_rows(product, stored, Path("model.onnx"))
    wrong = expected.copy()
    wrong[7, 32 * block : 32 * (block + 1)] *= 1.01
    monkeypatch.setattr(operator, "block_rows", lambda *_: wrong)
    np.testing.assert_array_equal(product_rows(product, stored, Path("model.onnx")), expected)


def random_product(bits: int, with_points: bool, kind: int, width: int) -> tuple[NodeProto, dict[str, TensorProto]]:
    """A `MatMulNBits` of 24 columns, and its tensors."""
    random, blocks = np.random.default_rng(bits + width), -(-width // 32)
    scales = random.uniform(0.5, 1, (24, blocks)).astype(helper.tensor_dtype_to_np_dtype(kind))
    arrays = {"codes": random.integers(0, 256, (24, blocks, 4 * bits), np.uint8), "scales": scales}
    if with_points:
        arrays["zero_points"] = random.integers(0, 256, (24, -(-blocks * bits // 8)), np.uint8)
    attributes = {"K": width, "N": 24, "bits": bits, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)
    return node, {name: numpy_helper.from_array(array, name) for name, array in arrays.items()}


def test_tables_of_other_exporters_are_read_back(tmp_path: Path) -> None:
    """`GatherBlockQuantized`: 4-bit integers, two in a byte, and a scale for each block of 32."""
    random = np.random.default_rng(0)
    codes, scales = random.integers(0, 256, (10, 32), np.uint8), random.uniform(0.5, 1, (10, 2)).astype(np.float32)
    attributes = {"block_size": 32, "bits": 4, "quantize_axis": 1, "gather_axis": 0}
    inputs = ["table.weight.quantized", "ids", "table.weight.scales"]
    node = helper.make_node("GatherBlockQuantized", inputs, ["rows"], domain="com.microsoft", **attributes)
    stored = [numpy_helper.from_array(codes, inputs[0]), numpy_helper.from_array(scales, inputs[2])]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 64])
    onnx.save(helper.make_model(helper.make_graph([node], "table", [ids], [rows], stored)), tmp_path / "model.onnx")
    ((name, block, weight),) = dequantized_weights(tmp_path / "model.onnx")
    integers = np.stack([codes & 15, codes >> 4], -1).reshape(10, 64).astype(np.float32)
    assert (name, block) == (inputs[0], 32)
    np.testing.assert_array_equal(weight, (integers - 8) * scales.repeat(32, axis=1))
