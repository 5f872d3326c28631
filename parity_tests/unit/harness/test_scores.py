"""Scores of answers are those of the published metrics, and intervals those of the papers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.harness.cases.tasks import Metric, PictureFile, Question
from parity_tests.harness.evidence.tasks import score_of
from parity_tests.harness.judging.intervals import bootstrap, mcnemar, newcombe, wilson
from parity_tests.harness.judging.scores import edit_distance, score
from qwen3vl_export.evidence.tasks import AnsweredQuestion

COLOURS = ("red", "blue", "a dark blue ring")


def question(metric: Metric, *answers: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("task", "1", "all", (), "?", answers, metric, choices)


@pytest.mark.parametrize(
    ("metric", "accepted", "answer", "expected"),
    [
        ("exact", ("a cat",), " a cat\n", 1),
        ("exact", ("a cat", "cat"), "cat", 1),
        ("exact", ("a cat",), "A cat", 0),
        ("exact", ("a cat",), "a cat.", 0),
        ("contains", ("12.50",), "The total is 12.50 EUR.", 1),
        ("contains", ("New  York",), "in new\nyork", 1),
        ("contains", ("12.50",), "12,50", 0),
        ("anls", ("Hello",), "hello", 1),
        ("anls", ("hello",), "hallo", 0.8),
        ("anls", ("abcd",), "abxx", 0.5),  # a distance of one half counts, as in DocVQA's own code and in lmms-eval
        ("anls", ("abcd",), "axxx", 0),
        ("anls", ("abcde",), "abcxx", 0.6),
        ("anls", ("nothing", "hallo"), "hello", 0.8),
        ("anls", ("hello",), "", 0),
    ],
)
def test_texts(metric: Metric, accepted: tuple[str, ...], answer: str, expected: float) -> None:
    assert score(answer, question(metric, *accepted)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. blue", "B"),
        ("b", None),
        ("Blue", "B"),
        ("blue.", "B"),
        ("The answer is B.", "B"),
        ("Option: (C)", "C"),
        ("It is red", "A"),
        ("A dark blue ring", "C"),
        ("A dark red ring", "A"),
        ("red or blue", None),
        ("D", None),
        ("", None),
    ],
)
def test_an_option_is_named_by_letter_or_text(answer: str, letter: str | None) -> None:
    for right in "ABC":
        assert score(answer, question("choice", right, choices=COLOURS)) == (right == letter), right


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('[{"bbox_2d": [100, 200, 500, 600], "label": "cat"}]', 1),
        ('```json\n[{"bbox_2d": [100, 200, 300, 600]}]\n```', 0.5),
        ("<|box_start|>(100,200),(500,400)<|box_end|>", 0.5),
        ('{"bbox_2d": [600, 700, 900, 900]}', 0),
        ('{"point_2d": [300, 300]}', 0),
        ("there is no cat", 0),
        ('[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [100, 200, 500, 600]}]', 0),  # the first counts
    ],
)
def test_boxes_are_thousandths_of_the_picture(answer: str, expected: float) -> None:
    """Of a picture of 200x100 pixels, in which the box is from (20, 20) to (100, 60)."""
    picture = PictureFile(Path("cat.png"), (200, 100))
    asked = Question("task", "1", "where", (picture,), "?", (), "iou", boxes=((20, 20, 100, 60), (0, 90, 5, 95)))
    assert score(answer, asked) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.text("ab c", max_size=12), st.text("ab c", max_size=12), st.text("ab c", max_size=12))
def test_the_edit_distance_is_a_metric(first: str, second: str, third: str) -> None:
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, second) == edit_distance(second, first) <= max(len(first), len(second))
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)


def test_intervals_are_those_of_the_papers() -> None:
    """Examples that were published with the methods (Newcombe, Statistics in Medicine 17, 1998: 857 and 2635)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(36, 2, 12, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_an_exact_test_counts_only_questions_that_one_side_answers_right() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 12) == pytest.approx(2 * 14 / 2**13)
    assert mcnemar(900, 1100) == pytest.approx(8.6e-6, rel=0.1)


def test_a_bootstrap_of_many_graded_scores_is_that_of_the_normal_distribution() -> None:
    values = [index % 10 / 10 for index in range(1000)]
    low, high = bootstrap(values)
    spread = 1.96 * 0.2872 / 1000**0.5
    assert (low, high) == pytest.approx((0.45 - spread, 0.45 + spread), abs=2e-3)
    assert bootstrap(values) == (low, high) and bootstrap([0.5]) == (0.5, 0.5)


def answered(score: float, reference_score: float, same: bool) -> AnsweredQuestion:
    return AnsweredQuestion("1", "all", "anls", score, reference_score, same, "", "")


def test_right_answers_are_counted_and_graded_ones_resampled() -> None:
    counted = score_of([*[answered(1, 1, True)] * 36, *[answered(1, 0, False)] * 12, *[answered(0, 1, False)] * 2])
    assert (counted.questions, counted.only_artifact, counted.only_reference) == (50, 12, 2)
    assert counted.difference.value == 0.2 and counted.p_value == pytest.approx(mcnemar(12, 2))
    assert (counted.difference.low, counted.difference.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert counted.agreement.value == 0.72 and counted.score.value == 0.96
    graded = score_of([answered(0.8, 1, False), answered(0.6, 0.6, True)] * 30)
    assert graded.p_value is graded.only_artifact is None
    assert graded.difference.value == pytest.approx(-0.1) and graded.difference.low < -0.1 < graded.difference.high < 0
