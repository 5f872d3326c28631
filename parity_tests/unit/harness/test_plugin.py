"""The pytest plugin as a user meets it: in another directory, without this project's configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from parity_tests import plugin
from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.hash_cache import DIRECTORY_VARIABLE

WORKFLOW = ROOT / "docs" / "parity-workflow.yml"


def run(directory: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "parity_tests.plugin", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, path or ROOT]))}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Somebody else's project, with a test of its own."""
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    return tmp_path


STREAMS = """
from parity_tests.harness import verify
from parity_tests.harness.sides.pytorch.streamed_model import StreamedModel

verify.must_stream = lambda *_: True
run_once = StreamedModel.run

def run(self, *arguments):
    print("a pass over the checkpoint")
    return run_once(self, *arguments)

StreamedModel.run = run
"""


def test_an_artifact_is_verified_from_anywhere(elsewhere: Path, tiny_artifact: Path) -> None:
    """By a worker, which has the checks of a case carried out together where PyTorch is streamed."""
    (elsewhere / "conftest.py").write_text(STREAMS)
    shutil.copytree(tiny_artifact, elsewhere / "tiny")
    selection = "grid-2x2 or (text-only and not batch)"
    result = run(elsewhere, "--artifact", "tiny", "--matrix", "quick", "-n", "1", "-v", "-k", selection)
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    assert "test_parity[vision[grid-2x2]]" in result.stdout
    assert "test_parity[decoder[text-only]]" in result.stdout
    assert "test_own" not in result.stdout
    assert not (elsewhere / "tiny" / "parity.json").exists()  # not the whole plan


def test_a_large_model_takes_one_pass_for_all_that_is_selected(
    elsewhere: Path, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(elsewhere / "cache"))  # nothing is known beforehand
    (elsewhere / "conftest.py").write_text(STREAMS)
    shutil.copytree(tiny_artifact, elsewhere / "tiny")
    selection = "decode and (text-only or minimum) and not batch and not decoder"
    result = run(elsewhere, "--artifact", "tiny", "--matrix", "quick", "-v", "-s", "-k", selection)
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    assert "2 passed" in result.stdout
    assert result.stdout.count("a pass over the checkpoint") == 1


def test_without_an_artifact_nothing_changes(elsewhere: Path) -> None:
    result = run(elsewhere, "-q")
    assert result.returncode == pytest.ExitCode.OK
    assert "1 passed" in result.stdout


OPTION = """
def pytest_addoption(parser):
    parser.addoption("--{name}", {settings})
"""
READS = """
import pytest

@pytest.mark.parametrize("name", {names})
def test_own(pytestconfig, name):
    assert pytestconfig.getoption(name) == "theirs"
"""


@pytest.mark.parametrize("place", ["conftest.py", "their_plugin.py"])
@pytest.mark.parametrize("settings", ["default='theirs'", "choices=['theirs', 'x'], default='theirs'"])
def test_options_that_the_project_has_stay_the_projects(tmp_path: Path, settings: str, place: str) -> None:
    added = (f"    parser.addoption('--{name}', {settings})\n" for name in plugin.OPTIONS)
    (tmp_path / place).write_text("".join(["def pytest_addoption(parser):\n", *added]))
    (tmp_path / "test_own.py").write_text(READS.format(names=list(plugin.OPTIONS)))
    arguments = [] if place == "conftest.py" else ["-p", "their_plugin"]
    done = run(tmp_path, "-q", *arguments, *(f"--{name}=theirs" for name in plugin.OPTIONS), path=tmp_path)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert f"{len(plugin.OPTIONS)} passed" in done.stdout


def test_long_names_work_where_the_short_ones_are_taken(elsewhere: Path, tiny_artifact: Path) -> None:
    (elsewhere / "conftest.py").write_text(OPTION.format(name="artifact", settings="default='theirs'"))
    shutil.copytree(tiny_artifact, elsewhere / "tiny")
    done = run(
        elsewhere, "--qwen3vl-artifact", "tiny", "--matrix", "quick", "-v", "-k", "decoder and text-only and not batch"
    )
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "test_parity[decoder[text-only]]" in done.stdout


def test_tests_with_our_words_in_their_arguments_are_left_alone(elsewhere: Path) -> None:
    (elsewhere / "test_own.py").write_text(
        "import pytest\n\n\n@pytest.fixture\ndef bench():\n    return 1\n\n\n"
        "@pytest.mark.parametrize('recipe_name, check', [('a', 2)])\n"
        "def test_own(recipe_name, check, bench):\n    assert (recipe_name, check, bench) == ('a', 2, 1)\n"
    )
    done = run(elsewhere, "-q")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, parity_tests.plugin; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_workflow_is_yaml_and_runs_what_exists() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["verify"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert any(command.startswith("qwen3vl-export build recipes/tiny.yaml") for command in commands)
    assert any(command.startswith("pytest --artifact") for command in commands)
