"""The held-out exam, taken by both sides: does the artifact answer as PyTorch does, and how often is that right?

Knows how to ask and how to count. The questions come from `cases/exam.py`; picture sizes become ids: `exam[256x256]`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..cases.exam import EXAM_SIZES, Question, exam
from ..cases.matrix import Prompt
from ..judging.outcome import Finding
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
        right, reference_right, different = 0, 0, []
        questions = [question for question in exam(bench.exam_per_size) if group_of(question) == group]
        for question in questions:
            prepared = bench.prepare([Prompt(question.images, question.frames, question.prompt)])
            ids = bench.generate(prepared, ANSWER_TOKENS, stop=True).ids[0].tolist()
            reference_ids = bench.reference.generate(as_inputs(prepared), ANSWER_TOKENS, stop=True).ids[0].tolist()
            right += bench.runtime.tokenizer.decode(ids).strip() == question.answer
            reference_right += bench.runtime.tokenizer.decode(reference_ids).strip() == question.answer
            if ids != reference_ids:
                different.append(question.id)
        return Score(len(questions), right, reference_right, tuple(different))

    if group not in bench.scores:
        bench.scores[group] = compute()
    return bench.scores[group]


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
