"""The scores of tasks, from the answers that checks recorded: of all questions, and by what they ask for.

Where every score is 0 or 1, answers are counted; else they are graded (`judging/intervals.py`). Knows answers and
scores; asks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwen3vl_export.evidence.answers import task_of
from qwen3vl_export.evidence.tasks import AnsweredQuestion, Estimate, Score, TaskScore

from ..judging.intervals import Interval, bootstrap, mcnemar, newcombe, wilson
from ..judging.outcome import Outcome


def task_scores(outcomes: Iterable[Outcome], digests: Mapping[str, str | None]) -> dict[str, TaskScore]:
    """The scores of the exam and of every task, by name.

    Args:
        digests: sha256 of each task, by name.
    """
    tasks: dict[str, list[AnsweredQuestion]] = {}
    for outcome in outcomes:
        name = task_of(outcome.stage, outcome.case)
        if name is not None and outcome.answers:
            tasks.setdefault(name, []).extend(outcome.answers)
    return {name: task_score(questions, digests.get(name)) for name, questions in tasks.items()}


def task_score(questions: Sequence[AnsweredQuestion], sha256: str | None) -> TaskScore:
    kinds: dict[str, list[AnsweredQuestion]] = {}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    return TaskScore(sha256, score_of(questions), {kind: score_of(kinds[kind]) for kind in sorted(kinds)})


def score_of(questions: Sequence[AnsweredQuestion]) -> Score:
    """The score of at least one question."""
    count = len(questions)
    ours, theirs = ([getattr(q, name) for q in questions] for name in ("score", "reference_score"))
    same = sum(question.same for question in questions)
    agreement = estimate([same], count, wilson(same, count))
    if {*ours, *theirs} <= {0.0, 1.0}:
        right, reference_right, both = (round(sum(values)) for values in (ours, theirs, map(min, ours, theirs)))
        only, only_reference = right - both, reference_right - both
        paired = newcombe(both, only, only_reference, count - both - only - only_reference)
        return Score(
            questions=count,
            score=estimate(ours, count, wilson(right, count)),
            reference_score=estimate(theirs, count, wilson(reference_right, count)),
            difference=estimate([only, -only_reference], count, paired),
            agreement=agreement,
            only_artifact=only,
            only_reference=only_reference,
            p_value=mcnemar(only, only_reference),
        )
    differences = [own - reference for own, reference in zip(ours, theirs, strict=True)]
    graded = [estimate(values, count, bootstrap(values)) for values in (ours, theirs, differences)]
    return Score(count, graded[0], graded[1], graded[2], agreement, None, None, None)


def estimate(values: Sequence[float], count: int, interval: Interval) -> Estimate:
    """The mean of values over a number of questions, with its interval; rounded, so that text of it stays short."""
    return Estimate(*(round(number, 6) for number in (sum(values) / count, *interval)))
