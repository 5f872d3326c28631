"""pytest options and fixtures: which artifact, which matrix, and the tiny artifact built once for every test that wants it.

`pytest parity_tests --artifact DIR [--matrix quick|standard|full]` carries out the plan `verify` carries out, one test per
check, and writes the same report into the artifact when the whole plan ran. Works with pytest-xdist.
"""

from __future__ import annotations

import os

# Thread pools that wait by spinning slow each other a hundredfold where workers share a few cores. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from qwen3vl_export.artifact import MANIFEST

from .matrix import TIERS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ("tiny", "tiny-fixed", "tiny-buckets")
SOURCES = ("qwen3vl_export/*.py", "qwen3vl_export/submodules/*.py", "recipes/*.yaml", "recipes/checkpoints/tiny/*")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption("--artifact", type=Path, help="verify this artifact; without it, freshly built tiny ones")
    group.addoption("--matrix", choices=TIERS, help="which cases; the recipe's choice unless said, quick without --artifact")


def source_digest() -> str:
    """sha256 over everything a tiny build reads, so that a kept build is never stale."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_once(name: str) -> Path:
    """The artifact of a shipped recipe, built if no test run has built it from the same sources before.

    Builds lie in the system's temporary directory under a digest of their sources. A lock lets several workers ask at
    the same time.
    """
    from qwen3vl_export.pipeline import build
    from qwen3vl_export.recipe import load_recipe

    parent = Path(tempfile.gettempdir()) / f"qwen3vl-export-tests-{os.getuid()}" / source_digest()
    parent.mkdir(parents=True, exist_ok=True)
    out = parent / name
    with FileLock(parent / f"{name}.lock"):
        if not (out / MANIFEST).is_file():
            shutil.rmtree(out, ignore_errors=True)
            build(load_recipe(ROOT / "recipes" / f"{name}.yaml"), out=out)
    return out


@pytest.fixture(scope="session")
def tiny_artifact() -> Path:
    """The artifact of recipes/tiny.yaml. Shared: copy it before changing anything in it."""
    return build_once("tiny")


@pytest.fixture(scope="session")
def tiny_fixed_artifact() -> Path:
    """The artifact of recipes/tiny-fixed.yaml, as `tiny_artifact`."""
    return build_once("tiny-fixed")


@pytest.fixture(scope="session")
def tiny_buckets_artifact() -> Path:
    """The artifact of recipes/tiny-buckets.yaml, as `tiny_artifact`."""
    return build_once("tiny-buckets")
