"""Setting up: which build of torch is chosen, what is said before a download, what is installed only when asked for.

The scripts run in a copy of their own, with stand-ins for pip, nvidia-smi, apt-get and the tools they call.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parity_tests.fixtures.paths import ROOT

VERSION = "2.13.0"
PYPI = ["2.14.0", "2.13.0", "2.12.1"]

PIP = """\
import os, pathlib, sys
arguments, site = sys.argv[1:], pathlib.Path(__file__).parents[1]
if arguments[:3] == ["index", "versions", "torch"]:
    offered = os.environ["PYTORCH" if "--index-url" in arguments else "PYPI"]
    if not offered:
        sys.exit("ERROR: No matching distribution found for torch")
    print(f"torch ({offered.split(', ')[0]})\\nAvailable versions: {offered}\\n  LATEST:    9.9.9")
else:
    with open(os.environ["LOG"], "a") as log:
        print("pip", *(word for word in arguments if not word.startswith("-q")), file=log)
    version = next(word for word in arguments if word.startswith("torch=")).replace("=", "").removeprefix("torch")
    for old in site.glob("torch-*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    installed = site / f"torch-{version}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: torch\\nVersion: {version}\\n")
"""

PYTHON = """\
#!/bin/bash
# Makes environments that hold this stand-in and pip's.
if [[ $1 == -m && $2 == venv ]]; then
  echo "venv" >>"$LOG"
  mkdir -p .venv/bin && cp "$0" .venv/bin/python
else
  exec {python} -S "$@"
fi
"""


@pytest.fixture
def choose_torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("choose_torch")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Project:
    """The scripts in a directory of their own, and a path on which only what a test puts there is found."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.programs = folder / "programs"
        self.log = folder / "log"
        for part in ("scripts", ".ci"):
            shutil.copytree(
                ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__", "tiny_training")
            )
        shutil.copyfile(ROOT / "pyproject.toml", self.root / "pyproject.toml")
        self.programs.mkdir()
        for name in ("bash", "cat", "cksum", "cp", "dirname", "env", "mkdir", "mktemp", "rm", "sed", "tail"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        program(folder / "site" / "pip" / "__main__.py", PIP)
        program(folder / "site" / "pip" / "__init__.py", "")  # or the environment's pip would come first
        program(self.programs / "python3", PYTHON.format(python=sys.executable))
        program(self.programs / "nvidia-smi", "#!/bin/bash\necho 'No devices were found'\nexit 6\n")
        self.user("0")
        self.environment = {
            "PATH": str(self.programs),
            "PYTHONPATH": str(folder / "site"),
            "LOG": str(self.log),
            "PYPI": ", ".join(PYPI),
            "PYTORCH": ", ".join([*PYPI, f"{VERSION}+cpu"]),
        }

    def user(self, number: str) -> None:
        program(self.programs / "id", f"#!/bin/bash\necho {number}\n")

    def logged(self, name: str, *paths: Path, then: str = "") -> None:
        """A program that notes that it was called."""
        for path in paths or (self.programs / name,):
            program(path, f'#!/bin/bash\necho "{name} $*" >>"$LOG"\n{then}\n')

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
        """Exit code, output, and the calls that were noted since the last run."""
        self.log.write_text("")
        done = subprocess.run(
            [self.root / script, *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout, [line.strip() for line in self.log.read_text().splitlines()]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# Which build of torch.

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PLAIN, LOCAL, CUDA = f"{VERSION}", f"{VERSION}+cpu", f"{VERSION}+cu130"


@pytest.mark.parametrize(
    ("asked", "system", "gpu", "installed", "pip", "pytorch", "build", "arguments"),
    [
        # No GPU: the CPU build, wherever it is.
        (None, "Linux", False, None, [LOCAL, PLAIN], [], "cpu", [f"torch=={LOCAL}"]),
        (None, "Linux", False, None, [CUDA, LOCAL], [], "cpu", [f"torch=={LOCAL}"]),
        (None, "Linux", False, None, [PLAIN], [LOCAL], "cpu", [f"torch=={LOCAL}", "--extra-index-url", CPU_INDEX]),
        (None, "Linux", False, None, [], [LOCAL], "cpu", [f"torch=={LOCAL}", "--extra-index-url", CPU_INDEX]),
        # A GPU: CUDA, unless pip has only the other.
        (None, "Linux", True, None, [LOCAL, PLAIN], [LOCAL], "cuda", [f"torch==={PLAIN}"]),
        (None, "Linux", True, None, [CUDA, LOCAL, PLAIN], [LOCAL], "cuda", [f"torch==={CUDA}"]),
        (None, "Linux", True, None, [LOCAL], [], "cpu", [f"torch=={LOCAL}"]),
        # What was asked for, whatever the machine has.
        ("cpu", "Linux", True, None, [LOCAL, PLAIN], [], "cpu", [f"torch=={LOCAL}"]),
        ("cuda", "Linux", False, None, [LOCAL, PLAIN], [], "cuda", [f"torch==={PLAIN}"]),
        # What is installed stays, unless another build is asked for or another release is needed.
        (None, "Linux", True, LOCAL, [PLAIN], [], "cpu", [f"torch=={LOCAL}"]),
        (None, "Linux", False, PLAIN, [PLAIN, LOCAL], [], "cuda", [f"torch=={PLAIN}"]),
        ("cpu", "Linux", False, PLAIN, [PLAIN, LOCAL], [], "cpu", [f"torch=={LOCAL}"]),
        ("cuda", "Linux", False, LOCAL, [PLAIN, LOCAL], [], "cuda", [f"torch==={PLAIN}"]),
        (None, "Linux", False, "2.12.0+cpu", [PLAIN, LOCAL], [], "cpu", [f"torch=={LOCAL}"]),
        # Elsewhere PyPI's wheels are for the CPU.
        (None, "Darwin", False, None, [], [], "cpu", [f"torch=={PLAIN}"]),
        ("cpu", "Windows", True, None, [], [], "cpu", [f"torch=={PLAIN}"]),
    ],
)  # fmt: skip
def test_the_build_of_torch(
    choose_torch: ModuleType,
    asked: str | None,
    system: str,
    gpu: bool,
    installed: str | None,
    pip: list[str],
    pytorch: list[str],
    build: str,
    arguments: list[str],
) -> None:
    choice = choose_torch.choose(
        VERSION, asked, system, lambda: gpu, installed, lambda index: pytorch if index == CPU_INDEX else pip
    )
    assert [choice.build, choice.requirement, *choice.options] == [build, *arguments]


@pytest.mark.parametrize(
    ("asked", "system", "pip", "line"),
    [
        (None, "Linux", PYPI, r"neither pip's indexes nor .* brings CUDA \(about 3 GB\).*: TORCH=cuda ./scripts/setup"),
        ("cpu", "Linux", PYPI, "neither pip's indexes nor .* offer a CPU build"),
        ("cuda", "Linux", [LOCAL], "offer no CUDA build of torch 2.13.0"),
        (None, "Linux", ["2.12.1"], "pip finds no torch 2.13.0 for Python 3"),
        (None, "Linux", [], "pip finds no torch 2.13.0 for Python 3"),
        ("cuda", "Darwin", PYPI, "torch has no CUDA build for Darwin"),
        ("rocm", "Linux", PYPI, "TORCH=rocm is no build of torch. Choose TORCH=cpu or TORCH=cuda"),
    ],
)
def test_no_build_of_torch(choose_torch: ModuleType, asked: str | None, system: str, pip: list[str], line: str) -> None:
    with pytest.raises(choose_torch.NoTorch, match=line):
        choose_torch.choose(VERSION, asked, system, lambda: False, None, lambda index: [] if index else pip)


@pytest.mark.parametrize(
    ("smi", "files", "gpu"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", [], True),
        ("echo 'No devices were found'", ["dev/nvidia0"], False),
        ("echo 'GPU 0: fell off the bus'; exit 9", [], False),
        (None, [], False),
        (None, ["dev/nvidia0"], True),
        (None, ["dev/nvidiactl", "proc/driver/nvidia/version"], False),
        (None, ["proc/driver/nvidia/gpus/0000:01:00.0/information"], True),
    ],
)
def test_a_gpu_is_found(
    choose_torch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smi: str | None,
    files: list[str],
    gpu: bool,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if smi is not None:
        program(tmp_path / "bin" / "nvidia-smi", f"#!{shutil.which('bash', path='/usr/bin:/bin')}\n{smi}\n")
    for file in files:
        path = tmp_path / "root" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert choose_torch.has_gpu(tmp_path / "root") is gpu


def test_an_index_that_does_not_answer_offers_nothing(
    choose_torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(command: list[str], **options: Any) -> None:
        assert options["timeout"] is not None
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", silent)
    assert choose_torch.offered_versions(CPU_INDEX) == []


# Setting up, from the first line to the second run.


def test_setup_installs_the_cpu_build_and_nothing_replaces_it(project: Project) -> None:
    code, output, calls = project.run("scripts/setup")
    torch = "torch==2.13.0+cpu"
    assert code == 0, output
    assert "torch 2.13.0+cpu, as no NVIDIA GPU is here. With CUDA (about 3 GB): TORCH=cuda ./scripts/setup" in output
    assert calls[0] == "venv"
    assert f"{torch} --extra-index-url https://download.pytorch.org/whl/cpu" in calls[1]
    assert "--editable" in calls[2] and calls[2].endswith(torch) and len(calls) == 3
    assert project.run("scripts/setup") == (0, "setup: .venv is up to date\n", [])


def test_setup_says_that_cuda_comes_before_it_does(project: Project) -> None:
    program(project.programs / "nvidia-smi", "#!/bin/bash\necho 'GPU 0: NVIDIA H200'\n")
    code, output, calls = project.run("scripts/setup")
    assert code == 0, output
    said = output.index("torch 2.13.0 with CUDA (about 3 GB), for the GPU here. Without (about 200 MB): TORCH=cpu")
    assert said < output.index("installing torch")
    assert "torch===2.13.0" in calls[1]


def test_setup_downloads_no_cuda_that_nobody_wants(project: Project) -> None:
    code, output, calls = project.run("scripts/setup", PYTORCH="")
    assert code == 1 and calls == ["venv"]
    assert output.splitlines()[-1].startswith("setup: neither pip's indexes nor") and "TORCH=cuda" in output
    code, output, calls = project.run("scripts/setup", PYTORCH="", TORCH="cuda")
    assert code == 0 and "torch===2.13.0" in calls[0]


def test_setup_replaces_the_build_that_another_is_asked_for(project: Project) -> None:
    project.run("scripts/setup")
    code, output, calls = project.run("scripts/setup", TORCH="cuda")
    assert code == 0 and "torch===2.13.0" in calls[0], output
    for again in ({}, {"TORCH": "cuda"}):
        assert project.run("scripts/setup", **again)[1:] == ("setup: .venv is up to date\n", [])
    code, output, calls = project.run("scripts/setup", TORCH="cpu")
    assert code == 0 and "torch==2.13.0+cpu" in calls[0], output


def test_setup_refuses_another_build_of_torch(project: Project) -> None:
    project.run("scripts/setup")
    code, output, calls = project.run("scripts/setup", TORCH="rocm")
    assert (
        code == 1
        and calls == []
        and output == "setup: TORCH=rocm is no build of torch. " + ("Choose TORCH=cpu or TORCH=cuda, or leave it out\n")
    )


# Chromium, which is installed only when asked for.


def tools(project: Project) -> None:
    """Stand-ins for what `scripts/test` calls."""
    project.logged("setup", project.root / "scripts" / "setup")
    for name in ("ruff", "mypy", "pytest"):
        project.logged(name, project.root / ".venv" / "bin" / name)


CHECKS = ["setup", "ruff format --check .", "ruff check .", "mypy"]
PYTEST = "pytest -n auto --dist worksteal"


def test_check_runs_format_lint_and_types(project: Project) -> None:
    tools(project)
    assert project.run("scripts/check")[::2] == (0, CHECKS)
    project.logged("ruff", project.root / ".venv" / "bin" / "ruff", then="exit 1")
    assert project.run("scripts/check")[0] == 1


def test_test_asks_for_chromium_before_anything_else(project: Project) -> None:
    tools(project)
    project.logged("apt-get")
    code, output, calls = project.run("scripts/test")
    assert code == 1 and calls == []
    assert output.count("\n") == 1
    assert "./scripts/setup_downstream --install" in output
    assert "./scripts/test -m 'not chromium'" in output


@pytest.mark.parametrize("arguments", [["-m", "not chromium"], ["-k", "recipes"]])
def test_test_does_what_the_line_says(project: Project, arguments: list[str]) -> None:
    tools(project)
    code, _, calls = project.run("scripts/test", *arguments)
    assert code == 0 and calls == ["setup", *CHECKS, " ".join([PYTEST, *arguments])]


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_test_runs_everything_where_chromium_is(project: Project, name: str) -> None:
    tools(project)
    project.logged(name)
    assert project.run("scripts/test")[::2] == (0, ["setup", *CHECKS, PYTEST])


def test_continuous_integration_asks_for_chromium_to_be_installed(project: Project) -> None:
    tools(project)
    project.logged("apt-get", then=f"[[ $1 != install ]] || cp {project.programs}/id {project.programs}/chromium")
    code, _, calls = project.run(".ci/run")
    installed = ["apt-get update", "apt-get install -y --no-install-recommends chromium"]
    assert code == 0 and calls == [*installed, "setup", *CHECKS, PYTEST]


def test_installing_chromium_uses_sudo_where_it_must(project: Project) -> None:
    project.user("1000")
    project.logged("apt-get")
    code, output, calls = project.run("scripts/setup_downstream", "--install")
    assert code == 1 and calls == [] and "there is no sudo here" in output
    project.logged("sudo", then='"$@"')
    code, _, calls = project.run("scripts/setup_downstream", "--install")
    assert code == 0 and calls[0].startswith("sudo") and calls[1] == "apt-get update"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--instal"], "setup: --instal: no such option. There is --install"),
        (["--install"], "setup: there is no apt-get here. Install Chromium or Google Chrome so that"),
    ],
)
def test_chromium_that_cannot_be_installed_is_one_line(project: Project, arguments: list[str], line: str) -> None:
    code, output, _ = project.run("scripts/setup_downstream", *arguments)
    assert code == 1 and output.startswith(line) and output.count("\n") == 1


def test_apt_get_that_fails_says_why(project: Project) -> None:
    project.logged("apt-get", then="echo 'E: Unable to locate package chromium' >&2; exit 100")
    code, output, _ = project.run("scripts/setup_downstream", "--install")
    assert code == 1 and "E: Unable to locate package chromium\nsetup: apt-get could not install Chromium" in output
