"""The bench of the pipeline carries out a whole run, small, and says why a side is missing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import ROOT

BENCH = ROOT / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def ran(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The figures of a run over the tiny model, with one side whose maker fails."""
    work = tmp_path_factory.mktemp("bench")
    (work / "checkpoint").symlink_to(ROOT / "recipes" / "checkpoints" / "tiny")
    (work / "fp32").symlink_to(tiny_artifact)
    (work / "fp32.made").touch()
    (work / "genai").write_text("in the way of the side's folder")
    (work / "qwen3").write_text("in the way of its source")
    sides = ["--side", "fp32", "--side", "genai"]
    options = ["--context", "24", "--context", "40", "--repeats", "1", "--threads", "1", "--photo"]
    out = work / "figures.json"
    command = [sys.executable, str(BENCH), "run", "--size", "tiny", *sides, *options, "--work", str(work)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_measures_what_it_says(ran: tuple[Path, str]) -> None:
    figures = json.loads(ran[0].read_text())
    assert list(figures["contexts"]) == ["24", "40"]
    for sides in figures["contexts"].values():
        assert set(sides) == {"fp32"}
        assert all(value > 0 for value in sides["fp32"].values())
    photograph = figures["photograph"]["fp32"]
    processor = json.loads((ran[0].parent / "fp32" / "preprocessor_config.json").read_text())
    assert photograph["tokens"] > processor["size"]["longest_edge"] // 32**2 and all(
        value > 0 for value in photograph.values()
    )
    assert figures["roofline"]["bandwidth"] > 1e8 and figures["roofline"]["gemm"] > 1e8
    data = (ran[0].parent / "fp32" / "onnx").glob("decoder_model_merged.onnx_data*")
    weights, cache = sum(file.stat().st_size for file in data), 2 * 4 * 2 * 32 * 4
    for context, sides in figures["contexts"].items():
        limit = (weights + int(context) * cache) / figures["roofline"]["bandwidth"]
        assert sides["fp32"]["limit"] == pytest.approx(limit)
    assert ran[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_side_that_cannot_be_made_says_why(ran: tuple[Path, str]) -> None:
    figures = json.loads(ran[0].read_text())
    assert list(figures["refused"]) == ["genai"] and "genai: could not be made" in ran[1]


def test_an_unknown_side_is_refused() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "run", "--side", "gguf"], capture_output=True, text=True)
    assert done.returncode == 2 and "no side gguf" in done.stderr


def test_a_side_can_have_an_interpreter_and_a_checkout_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    bench = importlib.import_module("bench")
    told = tmp_path / "python"
    told.write_text('#!/bin/sh\necho "[\\"$1\\", \\"$2\\", \\"$3\\", \\"$PWD\\", \\"$PYTHONPATH\\"]"\n')
    told.chmod(0o755)
    places = bench.Places([f"int4@before={told}", f"int4={told}"], [f"int4@before={tmp_path}"])
    worker, command, side, folder, path = places.run("read", "int4@before")
    assert Path(worker).name == "bench_side.py" and (command, side) == ("read", "int4@before")
    assert folder == path.split(os.pathsep)[0] == str(tmp_path)  # its recipes and its code
    *_, folder, path = places.run("read", "int4")
    assert folder == path.split(os.pathsep)[0] == str(ROOT)


def test_names_of_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    sides = importlib.import_module("bench_sides")
    precisions = [file.stem for file in (ROOT / "recipes" / "precisions").glob("*.yaml")]
    assert precisions and all(sides.is_side(name) and sides.is_ours(name) for name in precisions)
    assert all(map(sides.is_side, [*sides.NAMES, "int4@before", "genai:fp32", "openvino-genai@b"]))
    assert not any(map(sides.is_side, ["gguf", "genai:gguf", "", "@int4"])) and not sides.is_ours("genai:int4")
    assert set(sides.PEERS) == set(importlib.import_module("peer_models").MAKERS)


def test_rotary_settings_of_both_forms_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written in the published form; transformers 5 writes the newer one."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    rope_of = importlib.import_module("decoder_models").rope_of
    sections = {"mrope_section": [24, 20, 20]}
    assert rope_of({"rope_theta": 5e6, "rope_scaling": sections}) == (5e6, [24, 20, 20])
    assert rope_of({"rope_parameters": {"rope_theta": 5e6, **sections}}) == (5e6, [24, 20, 20])
