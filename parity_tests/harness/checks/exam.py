"""The held-out exam, taken by both sides: a task (`tasks.py`) whose checks are about a picture size each.

Picture sizes become ids: `exam[256x256]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..cases.tasks import Question
from ..judging.outcome import Finding
from ..sides.bench import Bench
from .tasks import ask_all_of, finding_of


def exam_check(questions: Sequence[Question]) -> Callable[[Bench], Finding]:
    """The check of one group; each question is in the evidence."""

    def check(bench: Bench) -> Finding:
        answered = ask_all_of(bench, questions)
        return replace(finding_of(answered), answers=tuple(answered))

    return check


def accuracy(questions: Sequence[Question]) -> Callable[[Bench], Finding]:
    """The check of all groups together."""
    return lambda bench: finding_of(ask_all_of(bench, questions))
