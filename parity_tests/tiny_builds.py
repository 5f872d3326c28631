"""Tiny artifacts for tests, each built once for the sources it depends on. Knows recipes and where builds are kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from qwen3vl_export.artifact import MANIFEST
from qwen3vl_export.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    "tiny",
    "tiny-portable",
    "tiny-fp16",
    "tiny-fixed",
    "tiny-buckets",
    "tiny-bf16",
    "tiny-int8",
    "tiny-int4",
)  # verified with the quick matrix where no artifact is given
SPLIT_LIMIT = 1_000_000  # bytes of a weight file of the split artifact
SOURCES = ("qwen3vl_export/**/*.py", "recipes/*.yaml", "recipes/checkpoints/tiny/*", "recipes/calibration/*")


def scratch() -> Path:
    """What test runs keep from one another, outside the user's own cache."""
    return Path(tempfile.gettempdir()) / f"qwen3vl-export-tests-{os.getuid()}"


def source_digest() -> str:
    """sha256 over everything a tiny build depends on, tool versions included, so that a kept build is never stale."""
    from qwen3vl_export.stages import tool_versions

    digest = hashlib.sha256(repr(tool_versions()).encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_split(out: Path) -> Path:
    """The artifact of recipes/tiny.yaml with weight files of at most `SPLIT_LIMIT` bytes."""
    import pytest

    from qwen3vl_export import packaging
    from qwen3vl_export.packaging import RUNTIMES, TRANSFORMERS_JS
    from qwen3vl_export.pipeline import build

    with pytest.MonkeyPatch.context() as patch:
        small = replace(RUNTIMES[TRANSFORMERS_JS], largest_file=SPLIT_LIMIT)
        patch.setattr(packaging, "RUNTIMES", {**RUNTIMES, TRANSFORMERS_JS: small})
        return build(load_recipe(ROOT / "recipes" / "tiny.yaml"), out=out, log=lambda line: None)


def build_once(name: str) -> Path:
    """The artifact of a shipped recipe, built if no test run has built it from the same sources before.

    Builds lie in the system's temporary directory under a digest of their sources. A lock lets several workers ask at
    the same time.
    """
    from qwen3vl_export.pipeline import build

    parent = scratch() / source_digest()
    parent.mkdir(parents=True, exist_ok=True)
    out = parent / name
    with FileLock(parent / f"{name}.lock"):
        if not (out / MANIFEST).is_file():
            build(load_recipe(ROOT / "recipes" / f"{name}.yaml"), out=out, force=True)
    return out
