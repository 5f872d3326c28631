"""Fixtures of the harness's tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwen3vl_export.manifest import MANIFEST


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact whose recipe asks for no exam."""
    copy = tmp_path / "tiny"
    shutil.copytree(tiny_artifact, copy)
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    manifest["recipe"]["parity"]["held_out"] = False
    (copy / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return copy
