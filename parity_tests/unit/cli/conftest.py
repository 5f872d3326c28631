"""Fixtures that several modules share: the tiny recipes in a working directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import RECIPES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds a copy of the tiny recipes."""
    for file in RECIPES.glob("tiny*.yaml"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
