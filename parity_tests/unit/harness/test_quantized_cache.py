"""A cache in 8 bits is proven: the graph with the cache in floating point, and integers that stand for its numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER
from qwen3vl_export.promise import QUANTIZED_CACHE

from ...faults.catalogue import Fault
from ...fixtures.paths import TINY
from ...harness.judging.outcome import Outcome
from ...harness.verify import open_bench, run

CASE = "text-only"
Change = Callable[[dict[str, TensorProto]], None]


def outcomes_of(artifact: Path, *stages: str) -> list[Outcome]:
    bench = open_bench(artifact, "quick", checkpoint=TINY)
    return list(run(bench, "quick", only=lambda check: check.stage in stages, cases=(CASE,)).outcomes)


def test_a_good_artifact_passes(tiny_cache_artifact: Path) -> None:
    """Within float32's limits where its cache is in floating point, and half a step from it as shipped."""
    stages = ("dequantized_decoder", "dequantized_decode", "dequantized_chunked", "rounded_decoder", QUANTIZED_CACHE)
    outcomes = outcomes_of(tiny_cache_artifact, *stages, "decoder", "chunked")
    assert {outcome.stage for outcome in outcomes} == {*stages, "decoder", "chunked"}
    for outcome in outcomes:
        assert outcome.passed, outcome.message
    (cached,) = [outcome for outcome in outcomes if outcome.stage == QUANTIZED_CACHE]
    assert 0.45 < cached.measures["first_layer_steps"] <= 0.5001
    (rounded,) = [outcome for outcome in outcomes if outcome.stage == "rounded_decoder"]
    assert 0 < rounded.measures["mean_kl"] < 0.01


def times(factor: float, layer: int, names: tuple[str, ...] = ("values", "results")) -> Change:
    """Other scales of a layer's values: of all that reads them, or of some."""

    def change(scales: dict[str, TensorProto]) -> None:
        for name in names:
            tensor = scales[f"cache_scale.{layer}.{name}"]
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), tensor.name))

    return change


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (QUANTIZED_CACHE, times(0.1, 0)),
        (QUANTIZED_CACHE, times(0.1, 2)),
        (QUANTIZED_CACHE, times(20, 3)),
        ("dequantized_decoder", times(1.01, 1, ("results",))),
        ("dequantized_decoder", times(1.01, 2, ("queries",))),
    ],
    ids=["first", "deeper", "coarse", "results", "queries"],
)
def test_scales_that_do_not_fit_are_found(
    tiny_cache_artifact: Path, tmp_path: Path, stage: str, change: Change
) -> None:
    def plant(artifact: Artifact) -> list[Path]:
        path = artifact.graph_path(DECODER)
        model: ModelProto = onnx.load(path, load_external_data=False)
        change({tensor.name: tensor for tensor in model.graph.initializer})
        onnx.save(model, path)
        return [path]

    broken = Fault("scales", stage, "", change=plant).plant(tiny_cache_artifact, tmp_path / "broken")
    (outcome,) = outcomes_of(broken, stage)
    assert not outcome.passed and not outcome.error
