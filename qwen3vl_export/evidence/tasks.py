"""The evidence about answers: what both sides answered to each question of a task, and their scores.

Knows the format; nothing about how answers are scored or intervals are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from ..hash_cache import Digest
from ..json_form import AtLeast

ALL = "all"  # the row of a table that is about every question
Part = Annotated[float, "From 0 to 1."]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with the answers of both sides and their scores."""

    id: str
    kind: Annotated[str, "What is asked for."]
    metric: str
    score: Part
    reference_score: Part
    same: Annotated[bool, "Whether both answers are the same tokens."]
    answer: Annotated[str, "Its beginning, where it is long."]
    reference_answer: str


@dataclass(frozen=True)
class Estimate:
    """A value over the questions that were asked, and the interval at 95 % of what it would be over more of them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The score of some questions on both sides."""

    questions: Annotated[int, AtLeast(1)]
    score: Estimate
    reference_score: Estimate
    difference: Annotated[Estimate, "The artifact's score less PyTorch's."]
    agreement: Annotated[Estimate, "The share of questions to which both sides answer the same tokens."]
    only_artifact: Annotated[int | None, "Right in the artifact alone; null where scores are graded."]
    only_reference: Annotated[int | None, "Right in PyTorch alone; null where scores are graded."]
    p_value: Annotated[float | None, "McNemar's, exact, of the difference; null where scores are graded."]


@dataclass(frozen=True)
class TaskScore:
    """The scores of a task: of all its questions, and by what they ask for."""

    sha256: Annotated[Digest | None, "Of the task file and its pictures; null of the exam, which is drawn."]
    every: Score
    kinds: Mapping[str, Score]


def describe(name: str, task: TaskScore) -> str:
    """`task receipts: score 91.2 % (92.0 % in PyTorch) of 250 questions, difference -0.8 points (-2.1 to +0.4), …`."""
    score = task.every
    return (
        f"task {name}: score {percent(score.score.value)} ({percent(score.reference_score.value)} in PyTorch) of "
        f"{score.questions:,} questions, difference {points(score.difference)}, same answer to "
        f"{percent(score.agreement.value)}"
    )


def points(difference: Estimate) -> str:
    """`-0.8 points (-2.1 to +0.4)`, with its interval."""
    value, low, high = (round(100 * number, 1) + 0.0 for number in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
