"""The page for people: the verdict first, every failure with its place, pictures that say what was measured."""

from __future__ import annotations

import math
import re

import pytest

from parity_tests.fixtures.reports import BAD, GOOD, TRAIL, Page, page, report, vision
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.evidence.charts import STEPS, heatmap, line, log_axis, step_of
from parity_tests.harness.evidence.page import render
from parity_tests.harness.evidence.sections import short


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
    text = render(report(*(vision(case.name, 1.0) for case in cases)).evidence(), load_matrix())
    assert Page(text).open == []


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
    assert TRAIL.record.unmatched == ("lm_head",)
