"""The fast subset names modules and fixtures that exist, so that renaming one does not change the subset unnoticed."""

from __future__ import annotations

import pytest

from parity_tests.fixtures.fast_subset import FAST, SLOW, SLOW_FIXTURES, TESTS, is_fast


@pytest.mark.parametrize("path", [*FAST, *SLOW])
def test_its_paths_exist(path: str) -> None:
    assert (TESTS / path).exists()


@pytest.mark.parametrize("path", SLOW)
def test_a_slow_module_would_be_in_it(path: str) -> None:
    assert path.startswith(FAST)


@pytest.mark.parametrize("name", sorted(SLOW_FIXTURES))
def test_its_fixtures_exist(name: str) -> None:
    sources = [path.read_text("utf-8") for path in TESTS.rglob("conftest.py")]
    assert any(f"def {name}(" in source for source in sources)


def test_this_test_is_in_it(request: pytest.FixtureRequest) -> None:
    assert is_fast(request.node)


@pytest.mark.parametrize("name", ["tiny_portable_artifact"])
def test_a_test_that_asks_for_a_slow_fixture_by_name_is_not(name: str, request: pytest.FixtureRequest) -> None:
    assert not is_fast(request.node)
