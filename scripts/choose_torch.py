"""Chooses the build of torch for `scripts/setup`, before anything is downloaded.

    python scripts/choose_torch.py 2.13.0      prints e.g. `cpu torch==2.13.0+cpu --extra-index-url URL`

On Linux PyPI's torch comes with CUDA. It is chosen where an NVIDIA GPU is, or where TORCH=cuda asks for it; otherwise
the CPU build is, from the indexes pip is set up with or from PyTorch's own. Where neither has one, nothing is chosen.
A build that is installed stays. Standard library only: this runs in an environment that holds pip and nothing else.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_SIZE, CUDA_SIZE = "about 200 MB", "about 3 GB"  # to download, with what torch depends on
BUILDS = ("cpu", "cuda")
SECONDS = 20  # that nvidia-smi and PyTorch's index may take to answer


class NoTorch(Exception):
    """No build can be chosen; the message says why and what to do."""


class Choice(NamedTuple):
    """A build, what `pip install` gets for it, and the line that says so."""

    build: str
    requirement: str
    options: tuple[str, ...]
    line: str


def choose(
    version: str,
    asked: str | None,
    system: str,
    gpu: Callable[[], bool],
    installed: str | None,
    offered: Callable[[str | None], list[str]],
) -> Choice:
    """Choose a build of a release of torch.

    Args:
        version: the release, such as `2.13.0`.
        asked: what TORCH is set to.
        system: as `platform.system` names it.
        gpu: whether an NVIDIA GPU is in the machine.
        installed: the version that the environment holds already.
        offered: the versions that pip can install, highest first; of pip's own indexes, or of the one that is named.

    Raises:
        NoTorch: TORCH is neither of `BUILDS`, or the build is not offered.
    """
    if asked not in (None, *BUILDS):
        raise NoTorch(f"TORCH={asked} is no build of torch. Choose TORCH=cpu or TORCH=cuda, or leave it out")
    if system != "Linux":
        if asked == "cuda":
            raise NoTorch(f"torch has no CUDA build for {system}. Leave TORCH out")
        return Choice("cpu", f"torch=={version}", (), f"torch {version}")
    if installed is not None and installed.partition("+")[0] == version:
        build = "cpu" if installed.endswith("+cpu") else "cuda"
        if asked in (None, build):
            return Choice(build, f"torch=={installed}", (), f"torch {installed} is installed")

    wanted = asked or ("cuda" if gpu() else "cpu")
    listed = offered(None)
    cpu = f"{version}+cpu"
    cuda = next((name for name in listed if name == version or name.startswith(f"{version}+cu")), None)
    if wanted == "cuda" and cuda is not None:
        why = "as TORCH=cuda asks" if asked else f"for the GPU here. Without ({CPU_SIZE}): TORCH=cpu ./scripts/setup"
        line = f"torch {cuda} with CUDA ({CUDA_SIZE}), {why}"
        return Choice("cuda", f"torch==={cuda}", (), line)  # `==` would also accept +cpu
    if asked == "cuda":
        raise NoTorch(f"pip's indexes offer no CUDA build of torch {version}. Leave TORCH out to get the CPU build")
    if asked:
        why = "as TORCH=cpu asks"
    elif wanted == "cuda":
        why = "though a GPU is here: pip's indexes offer no CUDA build"
    else:
        why = f"as no NVIDIA GPU is here. With CUDA ({CUDA_SIZE}): TORCH=cuda ./scripts/setup"
    line = f"torch {cpu}, {why}"
    if cpu in listed:
        return Choice("cpu", f"torch=={cpu}", (), line)
    if cpu in offered(CPU_INDEX):
        return Choice("cpu", f"torch=={cpu}", ("--extra-index-url", CPU_INDEX), line)
    if cuda is None:
        python = platform.python_version()
        raise NoTorch(
            f"pip finds no torch {version} for Python {python}. See why: {sys.executable} -m pip index versions torch"
        )
    raise NoTorch(
        f"neither pip's indexes nor {CPU_INDEX} offer a CPU build of torch {version}, and PyPI's brings CUDA "
        f"({CUDA_SIZE}). Take it: TORCH=cuda ./scripts/setup; or name an index with a CPU build: "
        "PIP_EXTRA_INDEX_URL=URL ./scripts/setup"
    )


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether nvidia-smi lists a GPU; where there is no nvidia-smi, whether the driver shows one below `root`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        patterns = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*")
        return any(path for pattern in patterns for path in root.glob(pattern))
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.startswith("GPU ")


def offered_versions(index: str | None) -> list[str]:
    """Versions of torch that pip can install here, highest first, local ones such as `2.13.0+cpu` included.

    pip reads index pages for it and downloads nothing. An index that does not answer offers nothing.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check"]
    limit = None
    if index is not None:
        command += ["--index-url", index, "--timeout", "5", "--retries", "0"]
        limit = SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return []
    label = "Available versions:"
    lines = [line.removeprefix(label) for line in done.stdout.splitlines() if line.startswith(label)]
    return [name.strip() for line in lines for name in line.split(",")]


def installed_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    version, asked = sys.argv[1], os.environ.get("TORCH") or None
    try:
        choice = choose(version, asked, platform.system(), has_gpu, installed_version(), offered_versions)
    except NoTorch as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    print(f"setup: {choice.line}", file=sys.stderr)
    print(choice.build, choice.requirement, *choice.options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
