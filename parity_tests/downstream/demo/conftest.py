"""A site with the demo page, the tiny artifact and a small one, and faults to be planted in what it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ...fixtures.paths import DOCS
from ..npm import node_modules
from ..site import Site, serve
from .faulty_site import Faults, faulty
from .page import loaded_page, open_page
from .stand_in import small, write_stand_in

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def site(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> Iterator[Site]:
    folders = {"demo": DOCS / "demo", "model": tiny_artifact, "node_modules": node_modules()}
    with serve(tmp_path_factory.mktemp("site"), folders, faulty(faults)) as served:
        library = served.root / "stand_in" / "dist"
        library.mkdir(parents=True)
        (library / "transformers.min.js").symlink_to(FOLDER / "transformers_stand_in.js")
        write_stand_in(served.root / "small")
        yield served


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Page:
    """A page for visits that neither keep nor need anything in the browser's cache."""
    return open_page(browser, "about:blank")


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Page:
    """The page with the stand-in, loaded and never broken."""
    return loaded_page(browser, small(site))


@pytest.fixture(autouse=True)
def no_faults(faults: Faults) -> None:
    faults.clear()
