"""A plan says to the byte what a build writes, reads no weight to know it, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from parity_tests.fixtures.paths import RECIPES
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.cli.main import app
from qwen3vl_export.console import format_duration
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter import plan as planning
from qwen3vl_export.exporter.checkpoint import Checkpoint
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.plan import BuildPlan, PlannedFile, plan_build
from qwen3vl_export.exporter.plan.table import show
from qwen3vl_export.recipe import load_recipe

TINY = RECIPES / "tiny.yaml"


@pytest.fixture
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with one small graph."""
    recipe = tmp_path_factory.mktemp("recipe") / "tokens.yaml"
    recipe.write_text(f"extends: {TINY}\ngraphs: [embed_tokens]\nparity: {{held_out: false}}\n")
    return recipe


@pytest.mark.parametrize("name", ["tiny-fp16", "tiny-int4"])
def test_the_planned_weights_are_the_built_ones_and_none_is_read(
    name: str, built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = built(name)
    read, seen = Checkpoint.read, set()

    def watched(self: Checkpoint, name: str, *how: Any) -> object:
        seen.add(name)
        return read(self, name, *how)

    monkeypatch.setattr(Checkpoint, "read", watched)
    plan = plan_build(load_recipe(name), out=tmp_path / "out", log=lambda line: None)
    assert seen == {"sample"}
    planned = {file.name: file for file in plan.files}
    data = {f"onnx/{path.name}": path.stat().st_size for path in (artifact / "onnx").glob("*.onnx_data")}
    assert {name: file.bytes for name, file in planned.items() if name.endswith("_data")} == data
    for path in (artifact / "onnx").glob("*.onnx"):
        assert abs(planned[f"onnx/{path.name}"].bytes - path.stat().st_size) < 64_000
    written = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert set(planned) <= written
    settings = written - set(planned) - {"parity.json"} - set(open_artifact(artifact).manifest.second_names)
    assert sum((artifact / name).stat().st_size for name in settings) < 200_000
    for file in planned.values():
        padding = file.bytes - sum(file.dtypes.values())
        assert not file.dtypes or 0 <= padding < 4096 * 400
    assert plan.memory > 100e6 and set(plan.seconds) == {"tracing", "weights", "checksums"}
    assert all(seconds > 0 for seconds in plan.seconds.values())
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_one_error_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    monkeypatch.setattr(Checkpoint, "read", lambda *args: pytest.fail("a weight was read"))
    with pytest.raises(BuildError, match=r"takes [34]\d\d,\d{3} bytes, 100,000 are free. Free some space, or choose"):
        build(load_recipe(tokens), out=tmp_path / "out", log=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    files = (PlannedFile("onnx/a.onnx_data", 3_000_000_000, {"float": 2_000_000_000, "uint8": 1_000_000_000}),)
    show(BuildPlan(files, free=2_000_000_000, memory=1 << 30, seconds={"tracing": 30, "weights": 63.4}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["onnx/a.onnx_data", "3,000,000,000", "float", "1.9", "GB,", "uint8", "953.7", "MB"]
    assert "NOT ENOUGH" in lines[3] and "about 1.0 GB" in lines[4]
    assert lines[5].startswith("time: about 1 min 33 s (tracing 30 s, weights 1 min 3 s)")
    assert format_duration(0.4) == "0 s"


def test_the_command_line_plans(tmp_path: Path, tokens: Path) -> None:
    result = CliRunner().invoke(app, ["build", str(tokens), "--plan", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "onnx/embed_tokens.onnx_data" in result.output and "peak memory: about" in result.output
    assert list(tmp_path.iterdir()) == []
