"""The documents keep up with the code: every recipe key explained, every command shown exists, figures generated."""

from __future__ import annotations

import importlib
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from parity_tests.fixtures.documents import DOCUMENTS, name_of, recipe_keys
from parity_tests.fixtures.paths import DOCS, FIXTURES, ROOT
from qwen3vl_export.cli import main as cli
from qwen3vl_export.evidence import Evidence, ExamScore, StageSummary
from qwen3vl_export.json_form import from_json, to_json

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


def evidence_of(artifact: str, **changes: Any) -> Evidence:
    """Evidence of an earlier version, renamed and changed."""
    frozen = from_json(Evidence, (FIXTURES / "evidence" / "parity.json").read_bytes())
    return replace(frozen, artifact=artifact, **changes)


def test_tables_say_what_was_and_was_not_measured(update_readme: ModuleType) -> None:
    summary = {"vision": StageSummary(2, 1, {"max_abs": None, "worst_token_cosine": math.nan}), "decode": None}
    exam = {"64x64": ExamScore(4, 0.75, 1.0), "96x96": ExamScore(None, None, None)}
    evidence = evidence_of("tiny", summary=summary, exam=exam)
    (proof,) = update_readme.proof_line(evidence)
    assert f"**[{evidence.planned - 2} of {evidence.planned} checks pass]({update_readme.TABLE})**" in proof
    lines = list(update_readme.parity_table(evidence))
    assert lines[-1].startswith("| vision encoder, with every DeepStack map | 2 | max abs not measured, ")
    assert "worst token cosine nan (≥ " in lines[-1]
    assert list(update_readme.exam_table(evidence))[-2:] == [
        "| 64x64 | 4 | 75% | 100% |",
        "| 96x96 | 0 | not measured | not measured |",
    ]


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
        manifest_sha256 = "0" * 64

    monkeypatch.setattr(update_readme, "open_artifact", lambda _: Opened)
    for text, reason in (
        (to_json(evidence_of("tiny", manifest_sha256="1" * 64, passed=True)), "another build"),
        (to_json(evidence_of("tiny", manifest_sha256="0" * 64, passed=False)), "did not pass"),
        ("{}", r"is not a parity report \(format is missing\)"),
    ):
        (tmp_path / "parity.json").write_text(text)
        with pytest.raises(update_readme.ParityError, match=reason):
            update_readme.read_evidence(tmp_path)
