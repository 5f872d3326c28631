"""The held-out exam, taken by both sides: does the artifact answer as PyTorch does, and how often is that right?

Knows how to ask and how to count. The questions come from `cases/exam.py`; picture sizes become ids: `exam[256x256]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qwen3vl_export.runtime import Prepared

from ..cases.exam import EXAM_SIZES, Question, exam
from ..cases.matrix import Prompt
from ..judging.outcome import Finding
from ..sides.artifact.artifact_results import ask_all
from ..sides.bench import Bench, as_inputs
from ..sides.counts import Score

ANSWER_TOKENS = 48  # the longest answer of the exam takes 28
MANY, TEXT = "several-pictures", "no-picture"
GROUPS = (*("{}x{}".format(*size) for size in EXAM_SIZES), MANY, TEXT)


def group_of(question: Question) -> str:
    if question.size is not None:
        return "{}x{}".format(*question.size)
    return MANY if question.images else TEXT


def take_exam(bench: Bench, group: str) -> Score:
    """Ask both sides one group's questions, greedily, until the end of the turn."""

    def compute() -> Score:
        questions = [question for question in exam(bench.exam_per_size) if group_of(question) == group]
        prepared = [bench.prepare([Prompt(asked.images, asked.frames, asked.prompt)]) for asked in questions]
        sides = (partial(answers_of, bench, prepared), partial(reference_answers, bench, prepared))
        answers, truth = ask_all(sides)
        pairs = list(zip(questions, answers, truth, strict=True))
        right = sum(bench.runtime.tokenizer.decode(ids).strip() == question.answer for question, ids, _ in pairs)
        reference_right = sum(
            bench.runtime.tokenizer.decode(ids).strip() == question.answer for question, _, ids in pairs
        )
        different = [question.id for question, ids, expected in pairs if ids != expected]
        return Score(len(questions), right, reference_right, tuple(different))

    if group not in bench.scores:
        bench.scores[group] = compute()
    return bench.scores[group]


def answers_of(bench: Bench, questions: Sequence[Prepared]) -> list[list[int]]:
    """The artifact's tokens."""

    def answer(prepared: Prepared) -> list[int]:
        ids: list[int] = bench.generate(prepared, ANSWER_TOKENS, stop=True).ids[0].tolist()
        return ids

    return ask_all(partial(answer, prepared) for prepared in questions)


def reference_answers(bench: Bench, questions: Sequence[Prepared]) -> list[list[int]]:
    """PyTorch's tokens."""

    def answer(prepared: Prepared) -> list[int]:
        ids: list[int] = bench.reference.generate(as_inputs(prepared), ANSWER_TOKENS, stop=True).ids[0].tolist()
        return ids

    return ask_all(partial(answer, prepared) for prepared in questions)


def finding_of(score: Score) -> Finding:
    measures = {
        "questions": score.questions,
        "answer_differences": len(score.different),
        "accuracy": score.right / score.questions if score.questions else None,
        "reference_accuracy": score.reference_right / score.questions if score.questions else None,
    }
    where = f"different answers to {', '.join(score.different[:5])}" if score.different else ""
    return Finding(measures, compared=score.questions, where=where)


def exam_check(group: str) -> Callable[[Bench], Finding]:
    """The check of one group."""
    return lambda bench: finding_of(take_exam(bench, group))


def accuracy(bench: Bench) -> Finding:
    """All groups together."""
    scores = [take_exam(bench, group) for group in GROUPS]
    return finding_of(
        Score(
            sum(score.questions for score in scores),
            sum(score.right for score in scores),
            sum(score.reference_right for score in scores),
            tuple(name for score in scores for name in score.different),
        )
    )
