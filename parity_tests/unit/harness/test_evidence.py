"""What a verification leaves behind: parity.json by its schema, before anything else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.paths import DOCS, FIXTURES
from parity_tests.fixtures.reports import BAD, GOOD, Page, validator
from parity_tests.fixtures.standin import artifact_without_graphs
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.evidence import history
from parity_tests.harness.evidence.history import PastRun
from parity_tests.harness.evidence.page import render
from parity_tests.harness.evidence.report import Report
from parity_tests.harness.evidence.schema import schema_text
from parity_tests.harness.verify import write_evidence
from qwen3vl_export.evidence import Evidence, Summary, summarize
from qwen3vl_export.evidence.answers import lines as answer_lines
from qwen3vl_export.json_form import from_json, from_values, to_json, to_values

SCHEMA = DOCS / "parity.schema.json"
FROZEN = FIXTURES / "evidence"  # files that earlier versions wrote
CHECK = to_values(GOOD.evidence())["checks"][0]
VERDICT = CHECK["verdicts"][0]


def test_the_published_schema_is_the_code_s() -> None:
    assert SCHEMA.read_text("utf-8") == schema_text(), (
        "python -m parity_tests.harness.evidence.schema > docs/parity.schema.json"
    )


@pytest.mark.parametrize("written", [GOOD, BAD], ids=["good", "bad"])
def test_what_is_written_follows_the_schema_and_is_read_again(written: Report) -> None:
    validator().validate(json.loads(written.to_json()))
    assert to_json(from_json(Evidence, written.to_json()), indent=1) + "\n" == written.to_json()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"passed": None}, "passed is not true or false"),
        ({"novelty": 1}, "novelty is an unknown key"),
        ({"manifest_sha256": "abc"}, "manifest_sha256 does not match"),
        ({"summary": {"vision": {}}}, "summary.vision.checks is missing"),
        ({"format": 2}, "format is not one of 1"),
        ({"matrix": "huge"}, "matrix is not one of quick, release, standard, full"),
        ({"planned": -1}, "planned is less than 0"),
        ({"planned": True}, "planned is not an integer"),
        ({"planned": 1.5}, "planned is not an integer"),
        ({"seconds": {"total": "NaN"}}, "seconds.total is not a number"),
        ({"checks": {}}, "checks is not a list"),
        ({"checks": [{**CHECK, "where": None}]}, r"checks\[0\].where is not text"),
        ({"checks": [{**CHECK, "seconds": -1}]}, r"checks\[0\].seconds is less than 0"),
        ({"checks": [{**CHECK, "measures": {"max_abs": "much"}}]}, r"checks\[0\].measures.max_abs is not"),
        ({"checks": [{**CHECK, "verdicts": [VERDICT | {"kind": "about"}]}]}, r"verdicts\[0\].kind is not one of 'max'"),
        ({"profile": {"name": "x", "settings": [], "rules": {}}}, "profile.settings is not an object"),
    ],
)  # fmt: skip
def test_neither_reader_nor_schema_takes_what_is_no_evidence(change: dict[str, Any], reason: str) -> None:
    values = {**to_values(GOOD.evidence()), **change}
    with pytest.raises(ValueError, match=reason):
        from_values(Evidence, values)
    assert not validator().is_valid(values)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, b"\xff", '{"format": NaN}'])
def test_what_is_not_even_an_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        from_json(Evidence, text)


def test_files_of_the_version_before_are_read_and_written_as_they_were() -> None:
    text = (FROZEN / "parity.json").read_text("utf-8")
    validator().validate(json.loads(text))
    evidence = from_json(Evidence, text)
    assert to_json(evidence, indent=1) + "\n" == text
    assert evidence.answers is None and next(answer_lines(evidence)).startswith("graph: cannot be told")
    assert [check.id for check in evidence.failures] == ["vision[photograph-451x300]", "decode[text-only]"]
    assert math.isnan(evidence.failures[0].measures["max_abs"] or 0)
    assert Page(render(evidence, load_matrix())).open == []
    summary = (FROZEN / "summary.json").read_text("utf-8")
    assert to_json(from_json(Summary, summary)) == summary
    assert summarize(evidence) == from_json(Summary, summary)
    lines = (FROZEN / "parity-history.jsonl").read_text("utf-8").splitlines()
    assert [to_json(from_json(PastRun, line)) for line in lines] == lines
    assert [run.profile for run in history.of_artifact(FROZEN / "parity-history.jsonl", "tiny-int4")] == ["int4"]


def test_the_evidence_is_written_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_without_graphs(tmp_path)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(history, "record", fail)
    with pytest.raises(KeyboardInterrupt):
        write_evidence(artifact, GOOD, load_matrix(), tmp_path / "history.jsonl")
    assert artifact.evidence_path("parity.json").read_text("utf-8") == GOOD.to_json()
