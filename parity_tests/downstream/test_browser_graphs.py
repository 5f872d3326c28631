"""Precisions in a browser: what the packaging says loads, loads, and computes what onnxruntime computes on a CPU.

`scripts/check_browsers.py` does the same with every precision, and on other adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from qwen3vl_export.packaging.browsers import WASM, WEBGPU
from qwen3vl_export.runtime import Qwen3VL

from ..fixtures.head_blocks import copy_with_blocks
from ..fixtures.tiny_builds import build_once
from ..harness.cases.matrix import load_matrix
from ..harness.sides.bench import conversation
from .browser_graphs import DEVICES, Computed, Run, complaints, compute, judge_runs, runs_of, serve_artifacts
from .site import Site

RECIPES = ("tiny", "tiny-int8", "tiny-bf16")
IN_BLOCKS = "tiny-int8"  # its head, as that of a published size is
CASE = "users-case-16x16-after-24x24"  # 64 image tokens: a wrong attention shows from 32 on


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {recipe: build_once(recipe) for recipe in RECIPES}
    return {**paths, IN_BLOCKS: copy_with_blocks(paths[IN_BLOCKS], tmp_path_factory.mktemp("blocks") / IN_BLOCKS)}


@cache
def model_and_runs(artifact: Path) -> tuple[Qwen3VL, dict[str, Run]]:
    model, matrix = Qwen3VL.load(artifact, check=False), load_matrix()
    case = next(case for case in matrix.of_tier("quick") if case.name == CASE)
    return model, runs_of(model, model.prepare([conversation(matrix.draw(case)[0])]))


@pytest.fixture(scope="module")
def site(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve_artifacts(tmp_path_factory.mktemp("site"), artifacts) as served:
        yield served


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_browser_does_what_the_packaging_says_and_what_a_cpu_does(
    browser: Browser, site: Site, artifacts: dict[str, Path], recipe: str, device: str
) -> None:
    model, runs = model_and_runs(artifacts[recipe])
    result = compute(browser, site, recipe, runs, device)
    assert complaints(model, runs, device, result, has_half=False) == []


@pytest.mark.parametrize("stage", ["vision", "embeddings", "prefill", "decode"])
def test_numbers_that_differ_are_complained_about(stage: str) -> None:
    model, runs = model_and_runs(build_once("tiny"))
    outputs = {name: run.expected.copy() for name, run in runs.items()}
    seconds = dict.fromkeys(outputs, 0.0)
    assert all(outcome.passed for outcome in judge_runs(model, runs, Computed(outputs, seconds)))
    outputs[stage].reshape(-1)[7] += 0.01
    (message,) = complaints(model, runs, WASM, Computed(outputs, seconds), has_half=False)
    assert message.startswith(f"{WASM}: {stage}[")


@pytest.mark.parametrize(("recipe", "loads"), [("tiny", True), ("tiny-bf16", False)])
def test_a_browser_that_contradicts_the_packaging_is_complained_about(recipe: str, loads: bool) -> None:
    model, runs = model_and_runs(build_once(recipe))
    outputs = {name: np.zeros_like(run.expected) for name, run in runs.items()}
    result = "load: no" if loads else Computed(outputs, dict.fromkeys(outputs, 0.0))
    (message,) = complaints(model, runs, WEBGPU, result, has_half=False)
    assert "the packaging says" in message and ("load: no" in message) is loads
