"""What a verification leaves behind: the schema of parity.json, the page for people, and the history."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from parity_tests.fixtures.paths import DOCS
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.diagnosis.layer_trace import Point, Trail
from parity_tests.harness.evidence import history
from parity_tests.harness.evidence.charts import STEPS, heatmap, line, log_axis, step_of
from parity_tests.harness.evidence.page import render, short
from parity_tests.harness.evidence.report import Report, cost_of
from parity_tests.harness.evidence.schema import Evidence, schema_text
from parity_tests.harness.judging.outcome import Finding, Outcome, judge
from parity_tests.harness.judging.verdicts import load_profile

SCHEMA = DOCS / "parity.schema.json"
PROFILE = load_profile("float32")
POINT = Point("written", "layers.1.mlp.up_proj", "output", "MatMul", 1e-3, 0.61, 2.0, True)
TRAIL = Trail(
    "decoder_model_merged",
    "minimum-64x64",
    (replace(POINT, module="layers.0.mlp.up_proj", nmse=1e-13, diverged=False), POINT),
    ("lm_head",),
    ("written",),
)


def vision(case: str, max_abs: float | None) -> Outcome:
    finding = Finding({"max_abs": max_abs, "worst_token_cosine": 1.0}, compared=4, where="worst <here>")
    return judge("vision", case, finding, PROFILE, 0.5)


def report(*outcomes: Outcome, trails: tuple[Trail, ...] = ()) -> Report:
    checkpoint = {"source": "x", "revision": "local"}
    result = Report("tiny", "0" * 64, checkpoint, "quick", load_matrix().seed, PROFILE, outcomes, len(outcomes))
    return replace(result, trails=trails, seconds={"total": 1.0}, reference_results={"computed": 1, "from_disk": 0})


GOOD = report(vision("minimum-64x64", 1e-5), vision("wide-512x128", 3e-5))
BAD = report(
    vision("minimum-64x64", 1e-5),
    vision("wide-512x128", 2.5),
    vision("photograph-451x300", math.nan),
    Outcome("decoder", "batch-of-different-sizes", 0.1, error="RuntimeError: no such kernel"),
    vision("grids-mixed", None),
    trails=(TRAIL,),
)


def test_the_published_schema_is_the_code_s() -> None:
    assert SCHEMA.read_text("utf-8") == schema_text(), (
        "python -m parity_tests.harness.evidence.schema > docs/parity.schema.json"
    )


@pytest.mark.parametrize("verification", [GOOD, BAD], ids=["good", "bad"])
def test_what_is_written_follows_the_schema(verification: Report) -> None:
    Evidence.model_validate_json(verification.to_json())


@pytest.mark.parametrize(
    "change", [{"passed": None}, {"novelty": 1}, {"manifest_sha256": "abc"}, {"summary": {"vision": {}}}]
)
def test_the_schema_refuses_what_is_no_evidence(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Evidence.model_validate({**GOOD.to_json_dict(), **change})


def logits(stage: str, case: str, positions: int, kl: float, worst: float, top1: float) -> Outcome:
    measures = {"max_abs": 0.1, "mean_kl": kl, "worst_kl": worst, "top1_agreement": top1, "positions": positions}
    return judge(stage, case, Finding(measures, compared=positions), PROFILE, 0.5)


COSTLY = report(
    logits("prefill", "text-only", 10, 0.5, 2.0, 1.0),
    logits("decode", "text-only", 30, 0.1, 0.3, 0.9),
    logits("decoder", "text-only", 10, 9.0, 9.0, 0.0),  # given PyTorch's rows: no part of the sum
    judge(
        "accuracy",
        "all-questions",
        Finding({"questions": 200, "accuracy": 0.915, "reference_accuracy": 0.935, "answer_differences": 9}, 200),
        PROFILE,
        0.5,
    ),
)


def test_what_a_precision_costs_is_pooled_over_positions() -> None:
    cost = COSTLY.precision()
    assert cost is not None
    assert cost["mean_kl"] == pytest.approx(0.2) and cost["worst_kl"] == 2.0
    assert cost["top1_agreement"] == pytest.approx(0.925) and cost["positions"] == 40
    assert cost_of(cost) == (
        "KL 0.2 in the mean and 2 at worst, the same best token at 92.50% of 40 positions; "
        "91.5% of 200 questions right (93.5% there)"
    )
    assert GOOD.precision() is None
    Evidence.model_validate_json(COSTLY.to_json())
    assert "What the precision costs" in page(COSTLY).text and "91.5 %" in page(COSTLY).text


class Page(HTMLParser):
    """Counts elements and gathers text; fails on a tag that is closed and was not open."""

    VOID = ("meta", "img", "br", "rect", "line", "polyline", "circle", "i")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " " + " ".join(data.split())


def page(verification: Report, runs: list[dict[str, Any]] | None = None) -> Page:
    return Page(render(verification.to_json_dict(), load_matrix(), runs or []))


def test_the_page_is_one_file_with_the_verdict_first() -> None:
    parsed = page(GOOD)
    assert parsed.open == []
    assert parsed.text.split("Stage by stage")[0].count("Passed") >= 1
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags


def test_the_page_of_a_failure_says_what_and_where() -> None:
    parsed = page(BAD)
    assert "Failed" in parsed.text
    assert "RuntimeError: no such kernel" in parsed.text
    assert "worst <here>" in parsed.text  # as text, not as markup
    assert re.search(r"verify ARTIFACT --case \S+ --seed \d+ --bisect", parsed.text)
    assert "decoder layer 1, mlp.up_proj (MatMul): worst-token cosine 0.61" in parsed.text
    assert parsed.tags.count("img") >= 2  # the pictures of failing cases
    assert "not measured" in parsed.text


def test_every_case_of_the_matrix_can_be_drawn_on_the_page() -> None:
    cases = load_matrix().of_tier("standard")
    text = render(report(*(vision(case.name, 1.0) for case in cases)).to_json_dict(), load_matrix())
    assert Page(text).open == []


def test_the_history_grows_by_a_line_and_shows_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for verification in (GOOD, BAD, GOOD):
        history.append(path, verification.to_json_dict())
    with path.open("a") as file:
        file.write('{"artifact": "tiny", half a li\n')
    history.append(path, {**GOOD.to_json_dict(), "artifact": "another"})
    runs = history.of_artifact(path, "tiny")
    assert [run["passed"] for run in runs] == [True, False, True]
    assert runs[0]["worst"]["vision"]["max_abs"] == 3e-5
    assert runs[1]["worst"]["vision"]["max_abs"] == "NaN"
    assert len(path.read_text().splitlines()) == 5
    assert "last 3 verifications" in page(GOOD, runs).text
    assert "Over time" not in page(GOOD, runs[:1]).text


def test_a_missing_history_is_empty(tmp_path: Path) -> None:
    assert history.of_artifact(tmp_path / "none.jsonl", "tiny") == []


def test_the_colour_scale_is_even_in_the_logarithm() -> None:
    assert [step_of(10.0**power, 1e-7, 1e0) for power in range(-7, 1)] == [0, 1, 2, 3, 4, 5, 6, STEPS - 1]
    assert step_of(math.inf, 1e-7, 1.0) == STEPS - 1


def test_a_cell_shows_the_worst_of_its_class() -> None:
    chart = heatmap({"a": (64, 64, 1e-5, False), "b": (70, 70, 1e-3, True), "c": (300, 64, 1e-5, False)})
    assert chart is not None
    assert [(cell.label, cell.failed) for cell in chart.cells] == [("1.0e-3", True), ("1.0e-5", False)]
    assert heatmap({"a": (64, 64, None, True)}) is None


def test_a_curve_breaks_where_nothing_was_measured() -> None:
    axis = log_axis([1e-3, 1e-1], 100, 0)
    assert line([1e-3, None, 1e-1, 1e-2], axis, 0, 30) == ["0.0,100.0", "20.0,0.0 30.0,50.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (math.nan, "not a number"), (math.inf, "infinite"), (0.0, "0"), (1 - 1e-9, "1 - 1e-09"),
     (0.9967807, "0.9967807"), (4.7e-5, "4.7e-05"), (12345.0, "12,345")],
)  # fmt: skip
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert short(value) == text


def test_a_trail_says_what_agrees_before_it() -> None:
    assert TRAIL.message == (
        "decoder layer 1, mlp.up_proj (MatMul): worst-token cosine 0.61, max abs 2, after written. "
        "The last value that agrees: decoder layer 0, mlp.up_proj (MatMul)"
    )
    assert asdict(TRAIL)["unmatched"] == ("lm_head",)
