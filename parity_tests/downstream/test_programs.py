"""What a test says when a program that it runs is missing, and which tests need a browser."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from ..conftest import pytest_collection_modifyitems
from .npm import CHROMIUM, NODE, program


@pytest.mark.parametrize(
    ("name", "install", "line"),
    [
        ("chromium", CHROMIUM, "chromium is not installed: ./scripts/setup_downstream says how to get it"),
        ("node", NODE, "node is not installed: ./scripts/setup installs it into .venv"),
    ],
)
def test_a_missing_program_says_what_installs_it(
    name: str, install: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.fail.Exception, match=line):
        program(name, install=install)


def test_every_test_that_needs_chromium_gets_it_from_the_fixture() -> None:
    """For the fixture is what `-m 'not chromium'` goes by."""
    tests = Path(__file__).parents[1]
    texts = {path.relative_to(tests): path.read_text() for path in tests.rglob("*.py")}
    launching = [path for path, text in texts.items() if "chromium" + ".launch(" in text]
    opening = [path for path, text in texts.items() if " open_" + "browser() as" in text]
    assert (launching, opening) == ([Path("downstream/chromium.py")], [Path("conftest.py")])


@pytest.mark.parametrize(("fixtures", "marks"), [(["page", "browser"], ["chromium"]), (["page"], [])])
def test_what_uses_the_fixture_is_marked(fixtures: list[str], marks: list[str]) -> None:
    item = Mock(fixturenames=fixtures)
    pytest_collection_modifyitems([item])
    assert [call.args[0] for call in item.add_marker.call_args_list] == marks
