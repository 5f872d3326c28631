"""The history of verifications: a line for each, shown on the page, and never in the way of the evidence."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parity_tests.fixtures.reports import BAD, GOOD, page
from parity_tests.fixtures.standin import artifact_without_graphs
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.evidence import history
from parity_tests.harness.verify import write_evidence


def test_the_history_grows_by_a_line_and_shows_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for written in (GOOD, BAD, GOOD):
        history.append(path, written.evidence())
    with path.open("a") as file:
        file.write('{"artifact": "tiny", half a li\n')
    history.append(path, replace(GOOD, artifact="another").evidence())
    runs = history.of_artifact(path, "tiny")
    assert [run.passed for run in runs] == [True, False, True]
    assert runs[0].worst["vision"]["max_abs"] == 3e-5
    assert math.isnan(runs[1].worst["vision"]["max_abs"] or 0)
    assert len(path.read_text().splitlines()) == 5
    assert "last 3 verifications" in page(GOOD, runs).text
    assert "Over time" not in page(GOOD, runs[:1]).text


def test_a_missing_history_is_empty(tmp_path: Path) -> None:
    assert history.of_artifact(tmp_path / "none.jsonl", "tiny") == []


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\0" * 99 + b"{")


def other_values(path: Path) -> None:
    path.write_text("[1]\nnull\n" + "[" * 99_999 + '\n{"artifact": "tiny"}\n' + "x" * 2_000_000 + "\n")


def a_file_in_place_of_its_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("damage", "is_written"),
    [
        (a_directory, False),
        (a_pipe, False),
        (a_file_in_place_of_its_folder, False),
        (no_text, True),
        (other_values, True),
    ],
)
def test_a_history_that_cannot_be_used_is_a_warning_and_the_evidence_is_there(
    damage: Callable[[Path], None], is_written: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "history.jsonl"
    damage(log)
    (tmp_path / "tiny").mkdir()
    artifact = artifact_without_graphs(tmp_path / "tiny")
    write_evidence(artifact, GOOD, load_matrix(), log)
    assert artifact.evidence_path("parity.json").read_text("utf-8") == GOOD.to_json()
    assert artifact.evidence_path("parity.xml").is_file() and artifact.evidence_path("parity.html").is_file()
    said = capsys.readouterr().out
    assert ("warning: " in said and str(log) in said and "--history" in said) is not is_written
    if is_written:
        assert [run.artifact for run in history.of_artifact(log, GOOD.artifact)] == [GOOD.artifact]
