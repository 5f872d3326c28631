"""The pytest plugin as a user meets it: in another directory, without this project's configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from parity_tests.fixtures.paths import ROOT

WORKFLOW = ROOT / "docs" / "parity-workflow.yml"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "parity_tests.plugin", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project of somebody else's, with a test of its own."""
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    return tmp_path


def test_an_artifact_is_verified_from_anywhere(elsewhere: Path, tiny_artifact: Path) -> None:
    shutil.copytree(tiny_artifact, elsewhere / "tiny")
    chosen = "grid-2x2 or (text-only and not batch)"
    done = run(elsewhere, "--artifact", "tiny", "--matrix", "quick", "-n", "1", "-v", "-k", chosen)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "test_parity[vision[grid-2x2]]" in done.stdout
    assert "test_parity[decoder[text-only]]" in done.stdout
    assert "test_own" not in done.stdout
    assert not (elsewhere / "tiny" / "parity.json").exists()  # not the whole plan


def test_without_an_artifact_nothing_changes(elsewhere: Path) -> None:
    done = run(elsewhere, "-q")
    assert done.returncode == pytest.ExitCode.OK
    assert "1 passed" in done.stdout


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, parity_tests.plugin; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_workflow_is_yaml_and_runs_what_exists() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["verify"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert any(command.startswith("qwen3vl-export build recipes/tiny.yaml") for command in commands)
    assert any(command.startswith("pytest --artifact") for command in commands)
