"""The decoder's bench carries out a whole run, small, and says why a side is missing."""

from __future__ import annotations

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
    (work / "float32").symlink_to(tiny_artifact)
    (work / "float32.made").touch()
    (work / "genai").write_text("in the way of the side's folder")
    (work / "qwen3").write_text("in the way of its source")
    sides = ["--side", "float32", "--side", "genai"]
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
        assert set(sides) == {"float32"}
        assert all(value > 0 for value in sides["float32"].values())
    assert figures["photograph"]["float32"]["first_token"] > 0
    assert figures["roofline"]["bandwidth"] > 1e8 and figures["roofline"]["gemm"] > 1e8
    data = (ran[0].parent / "float32" / "onnx").glob("decoder_model_merged.onnx_data*")
    assert figures["weights"]["float32"] == sum(file.stat().st_size for file in data)
    assert figures["cache_values"] == 2 * 4 * 2 * 32
    assert ran[0].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_side_that_cannot_be_made_says_why(ran: tuple[Path, str]) -> None:
    figures = json.loads(ran[0].read_text())
    assert list(figures["refused"]) == ["genai"] and "genai: could not be made" in ran[1]


def test_an_unknown_side_is_refused() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "run", "--side", "gguf"], capture_output=True, text=True)
    assert done.returncode == 2 and "no side gguf" in done.stderr
