"""Which releases of other projects are allowed, pinned and named: all the same ones."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from parity_tests.fixtures.paths import ROOT


def requirements(text: str) -> list[Requirement]:
    """One a line, `#` begins a comment."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ALLOWED = {
    wanted.name: wanted.specifier
    for extra in PROJECT["optional-dependencies"].values()
    for wanted in requirements("\n".join(extra))
}
PINNED = requirements((ROOT / "scripts" / "constraints.txt").read_text("utf-8"))


@pytest.mark.parametrize("pin", PINNED, ids=lambda pin: pin.name)
def test_a_pinned_release_is_allowed_and_newer_ones_too(pin: Requirement) -> None:
    (exact,) = pin.specifier
    assert exact.operator == "=="
    major, minor, *_ = exact.version.split(".")
    assert exact.version in ALLOWED[pin.name]
    assert f"{major}.{int(minor) + 1}.0" in ALLOWED[pin.name]


@pytest.mark.parametrize("document", ["docs/downstream.md", "docs/demo/page/worker.js"])
def test_documents_name_the_transformers_js_that_is_tested(document: str) -> None:
    package = json.loads((ROOT / "parity_tests" / "downstream" / "package.json").read_text("utf-8"))
    named = re.findall(r"transformers(?:\.js |@)(\d+\.\d+\.\d+)", (ROOT / document).read_text("utf-8"))
    assert set(named) == {package["dependencies"]["@huggingface/transformers"]}
