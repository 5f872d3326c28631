"""The join of per-image results under other people's optimizers: whoever rewrites the graph gets the same features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import pytest
from onnxscript import optimizer

SETS = [[[1, 16, 16], [3, 6, 10], [1, 2, 30], [1, 4, 4]], [[1, 6, 10], [3, 10, 6]]]  # one for each branch
ROUNDING = 5e-5  # what another order of sums may cost features that reach 16; the limit against PyTorch too
LEVELS = ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
REWRITES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxsim": lambda model: onnxsim.simplify(model)[0],
    "onnxscript": optimizer.optimize,
}


def features(model: onnx.ModelProto, level: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session: Any = ort.InferenceSession(model.SerializeToString(), options)
    results = []
    for grids in map(np.array, SETS):
        pixels = np.random.default_rng(0).standard_normal((int(grids.prod(1).sum()), 1536), np.float32)
        results += session.run(None, {"pixel_values": pixels, "image_grid_thw": grids})
    return np.concatenate(results)


@pytest.fixture(scope="module", params=["tiny", "tiny-portable"])
def delivered(request: pytest.FixtureRequest, built: Callable[[str], Path]) -> tuple[onnx.ModelProto, np.ndarray]:
    """An encoder as it is delivered, and its features without a single optimization."""
    model = onnx.load(built(request.param) / "onnx" / "vision_encoder.onnx")
    return model, features(model, "ORT_DISABLE_ALL")


@pytest.mark.parametrize("level", LEVELS)
def test_onnxruntimes_passes_keep_the_features(delivered: tuple[onnx.ModelProto, np.ndarray], level: str) -> None:
    model, expected = delivered
    np.testing.assert_allclose(features(model, level), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES.keys())
def test_other_optimizers_keep_the_features(
    delivered: tuple[onnx.ModelProto, np.ndarray], rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    model, expected = delivered
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    np.testing.assert_allclose(features(rewrite(copy), "ORT_ENABLE_ALL"), expected, rtol=0, atol=ROUNDING)
