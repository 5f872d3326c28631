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
from pydantic import BaseModel
from typer.testing import CliRunner

from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.cli import main as cli
from qwen3vl_export.recipe import Recipe
from qwen3vl_export.recipe.model import Calibration, Checkpoint, Packaging, Parity, Quantization, Vision

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/recipes.md", "docs/runtime.md", "docs/fleet.md")


def text(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def keys(model: type[BaseModel], below: str = "") -> Iterator[str]:
    blocks = {
        "checkpoint": Checkpoint,
        "vision": Vision,
        "quantization": Quantization,
        "calibration": Calibration,
        "parity": Parity,
        "packaging": Packaging,
    }
    for name in model.model_fields:
        if model is Recipe and name in blocks:
            yield from keys(blocks[name], f"{name}.")
        else:
            yield below + name


@pytest.mark.parametrize("key", list(keys(Recipe)))
def test_every_recipe_key_is_documented(key: str) -> None:
    page = text("docs/recipes.md")
    last = key.rpartition(".")[2]
    assert f"| `{key}`" in page or f"`.{last}`" in page


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(document)):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def shown_commands() -> list[str]:
    lines = [line for document in DOCUMENTS for line in text(document).splitlines()]
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
    lines = list(update_readme.parity_table(found()))
    assert "**1 of 2 checks pass**" in lines[0]
    assert lines[-1] == "| vision encoder, with every DeepStack map | 2 | max abs not measured |"
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
