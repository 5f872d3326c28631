"""The documents keep up with the code: every recipe key explained, every command shown exists, figures generated."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from parity_tests.fixtures.documents import DOCUMENTS, name_of, recipe_keys
from parity_tests.fixtures.paths import DOCS, ROOT
from qwen3vl_export.cli import main as cli

FIRST_SCREEN = 40  # lines of README.md
LINE_LENGTH = 120


@pytest.mark.parametrize("key", list(recipe_keys()))
def test_every_recipe_key_is_documented(key: str) -> None:
    page = (DOCS / "recipes.md").read_text("utf-8")
    last = key.rpartition(".")[2]
    assert f"| `{key}`" in page or f"`.{last}`" in page


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without fences, tables and what scripts write between markers."""
    skipped = re.compile(r"^```.*?^```$|^<!-- (\w+) -->$.*?^<!-- /?\1 -->$|^\|.*?$", re.MULTILINE | re.DOTALL)
    kept = skipped.sub(lambda match: "\n" * match[0].count("\n"), text)
    return enumerate(kept.splitlines(), 1)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_prose_is_wrapped(document: Path) -> None:
    lines = prose(document.read_text("utf-8"))
    assert not [f"line {number}: {line}" for number, line in lines if len(line) > LINE_LENGTH]


def test_the_first_screen_of_the_readme_has_what_a_stranger_needs() -> None:
    screen = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:FIRST_SCREEN])
    commands = ("$ pip install", *(f"$ qwen3vl-export {command}" for command in ("build", "verify", "run")))
    table = "#compared-with-pytorch"
    needed = [*commands, "Qwen3VL.load(", "<!-- /proof -->", table, "Runs on", "onnxruntime", "Python 3.11"]
    assert not [words for words in needed if words not in screen]


def shown_commands() -> list[str]:
    lines = [line for document in DOCUMENTS for line in document.read_text("utf-8").splitlines()]
    return sorted({line[2:].split("#")[0].strip() for line in lines if line.startswith("$ qwen3vl-export ")})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_shown_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    depth = 2 if words[0] in ("recipes", "fleet") else 1
    result = CliRunner().invoke(cli.app, [*words[:depth], "--help"])
    assert result.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    for option in (word for word in words if word.startswith("--")):
        assert option in plain


@pytest.fixture
def update_readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("update_readme")


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("marked")


def found(**changes: Any) -> dict[str, Any]:
    rule = {"measure": "max_abs", "kind": "max", "limit": 1e-4}
    values = {
        "artifact": "tiny",
        "matrix": "quick",
        "planned": 2,
        "near_ties": [],
        "versions": {"transformers": "5", "torch": "2", "onnxruntime": "1"},
        "checks": [{"passed": True}, {"passed": False}],
        "summary": {"vision": {"checks": 2, "failed": 1, "worst": {"max_abs": None}}, "decode": None},
        "profile": {"rules": {"vision": [rule], "decode": [rule]}},
        "exam": {"64x64": {"questions": 4, "accuracy": 0.75, "reference_accuracy": 1.0}},
    }
    return {**values, **changes}


def test_tables_say_what_was_and_was_not_measured(update_readme: ModuleType) -> None:
    (proof,) = update_readme.proof_line(found())
    assert f"**[1 of 2 checks pass]({update_readme.TABLE})**" in proof
    assert (
        list(update_readme.parity_table(found()))[-1]
        == "| vision encoder, with every DeepStack map | 2 | max abs not measured |"
    )
    assert list(update_readme.exam_table(found()))[-1] == "| 64x64 | 4 | 75% | 100% |"


def test_only_what_stands_between_the_markers_changes(marked: ModuleType, tmp_path: Path) -> None:
    before = "a\n<!-- parity -->\nold\n<!-- /parity -->\nb\n"
    document = tmp_path / "a.md"
    document.write_text(before, "utf-8")
    sections = {"parity": ["new", "er"]}
    assert marked.update(document, sections, check=True) == 1
    assert document.read_text("utf-8") == before
    assert marked.update(document, sections, check=False) == 0
    assert document.read_text("utf-8") == before.replace("old", "new\ner")
    assert marked.update(document, sections, check=True) == 0
    with pytest.raises(marked.ParityError, match="has no <!-- faults -->"):
        marked.update(document, {"faults": []}, check=False)


def test_failed_or_foreign_evidence_is_refused(update_readme: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
    class Opened:
        manifest_sha256 = "ours"

    monkeypatch.setattr(update_readme, "open_artifact", lambda _: Opened)
    for values, reason in (
        ({"manifest_sha256": "theirs", "passed": True}, "another build"),
        ({"manifest_sha256": "ours", "passed": False}, "did not pass"),
    ):
        (tmp_path / "parity.json").write_text(json.dumps(values))
        with pytest.raises(update_readme.ParityError, match=reason):
            update_readme.evidence(tmp_path)
