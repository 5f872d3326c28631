"""Fixtures that several modules share: an artifact of several precisions, each proven; a Ghostscript that is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import EpsImagePlugin

from ..fixtures.image_files import fake_ghostscript
from ..fixtures.proven import prove
from ..fixtures.tiny_builds import build_once


@pytest.fixture(scope="session")
def proven_precisions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of recipes/tiny-precisions.yaml with evidence of its own. Shared: copy it before changing it."""
    return prove(build_once("tiny-precisions"), tmp_path_factory.mktemp("precisions") / "tiny")


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once Pillow has run Ghostscript."""
    programs = tmp_path / "programs"
    programs.mkdir()
    ran = fake_ghostscript(programs)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    return ran
