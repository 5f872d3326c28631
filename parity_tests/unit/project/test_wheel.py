"""The wheel: what is in it, and that what is in it works from another directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import RECIPES, ROOT, TINY

SHIPPED_TESTS = {"parity_tests/__init__.py", "parity_tests/plugin.py", "parity_tests/test_parity.py"}


def environment(**changes: str) -> dict[str, str]:
    """The variables of a user who has no source tree on the path."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | changes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree; setuptools comes from the environment, so that nothing is downloaded."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"  # setuptools writes beside its sources
    kept = shutil.ignore_patterns(".*", "artifacts", "build", "dist", "*.egg-info", "__pycache__", "node_modules")
    shutil.copytree(ROOT, source, ignore=kept)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(directory), str(source)], check=True)
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The `bin` of an environment that has the wheel, and everything else from the one that runs the tests."""
    home = wheel.parent / "installed"
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], env=environment(), check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # an editable install is not followed
    return home / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory that holds a recipe and its checkpoint, and nothing else of the repository."""
    (tmp_path / "recipes" / "checkpoints").mkdir(parents=True)
    shutil.copy(RECIPES / "tiny.yaml", tmp_path / "recipes")
    shutil.copytree(TINY, tmp_path / "recipes" / "checkpoints" / "tiny")
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "extends: tiny.yaml\nname: mine\nparity: {matrix: quick, held_out: false}\n"
    )
    return tmp_path


def test_it_holds_the_package_and_the_harness_and_no_tests(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and ".data/" not in name}
    tests = {name for name in names if not name.startswith("qwen3vl_export/")}
    assert {name for name in tests if not name.startswith("parity_tests/harness/")} == SHIPPED_TESTS
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("qwen3vl_export", "parity_tests/harness")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources | SHIPPED_TESTS


def test_what_is_installed_builds_verifies_and_publishes_from_another_directory(
    installed: Path, elsewhere: Path
) -> None:
    variables = environment(PATH=os.pathsep.join([str(installed), os.environ["PATH"]]))

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import qwen3vl_export, parity_tests.harness as h; print(qwen3vl_export.__file__, h.__file__)"
    assert all(Path(path).is_relative_to(installed.parent) for path in run("python", "-c", where).split())
    assert "qwen3-vl-8b-instruct" in run("qwen3vl-export", "recipes", "list")
    assert "method: int4" in run("qwen3vl-export", "recipes", "show", "qwen3-vl-8b-instruct", "--precision", "int4")
    run("qwen3vl-export", "build", "mine", "--out", "tiny")
    run("qwen3vl-export", "verify", "tiny")
    chosen = ["-k", "vision and minimum-64x64", "-p", "no:cacheprovider"]
    assert "1 passed" in run("python", "-m", "pytest", "--artifact", "tiny", *chosen)
    run("qwen3vl-export", "publish", "tiny", "--to", "published", "--demo")
    assert all((elsewhere / "published" / name).is_file() for name in ("index.html", "page/worker.js"))
