"""An artifact of several precisions, each proven, for the tests of what is done with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..proven import prove
from ..tiny_builds import build_once


@pytest.fixture(scope="session")
def proven_precisions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of recipes/tiny-precisions.yaml with evidence of its own. Shared: copy it before changing it."""
    return prove(build_once("tiny-precisions"), tmp_path_factory.mktemp("precisions") / "tiny")
