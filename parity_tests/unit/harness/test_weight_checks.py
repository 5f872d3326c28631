"""Quantized weights are dequantized by either target's operators, and a wrong one is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from parity_tests.harness.checks.weights import block_errors, dequantized_weights
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.sides.artifact.probe import module_of
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.promise import WEIGHTS

from ...fixtures.paths import TINY
from ..export.test_quantize import build_graph

GRAPH = "decoder_model_merged"
PROFILES = {"int8": "int8", "int4": "int4", "int8_dynamic": "int8"}


def write_graph(work: Path, target: str, method: str) -> Path:
    build_graph(work, GRAPH, target, method=method)
    return work / f"{GRAPH}-{target}-{method}" / "model.onnx"


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


@pytest.mark.parametrize("method", PROFILES)
def test_a_scale_that_is_twice_as_large_is_found(method: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path, "portable", method)
    good = {parameter: rows for parameter, _, rows in dequantized_weights(path)}
    model = onnx.load(path)
    scales = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("up_proj.weight.scales"))
    changed = numpy_helper.to_array(scales).copy()
    changed.flat[3] *= 2
    scales.CopyFrom(numpy_helper.from_array(changed, scales.name))
    onnx.save(model, path)
    off = [name for name, _, rows in dequantized_weights(path) if np.abs(rows - good[name]).max() > 0]
    assert off == [scales.name.replace(".scales", ".quantized")]
