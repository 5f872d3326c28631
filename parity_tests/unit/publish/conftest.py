"""A small proven artifact for every test of publishing, and a copy of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ...fixtures.proven import prove


@pytest.fixture(scope="session")
def proven(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that may be published. Shared: `copy` is the one to change."""
    return prove(tiny_artifact, tmp_path_factory.mktemp("proven") / "tiny")


@pytest.fixture
def copy(proven: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(proven, tmp_path / "tiny"))
