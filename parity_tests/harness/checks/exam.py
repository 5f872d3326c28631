"""The held-out exam, sat by both sides: does the artifact answer as PyTorch does, and how often is that right?

Knows how to ask and how to count. The questions are `exam.py`'s, the picture sizes become the ids: `exam[256x256]`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..cases.exam import EXAM_SIZES, Question, exam
from ..cases.matrix import Prompt
from ..judging.outcome import Finding
from ..sides.bench import Bench, as_inputs
from ..sides.counts import Score

ANSWER_TOKENS = 48  # the longest answer of exam.py takes 28
MANY, TEXT = "several-pictures", "no-picture"
GROUPS = (*("{}x{}".format(*size) for size in EXAM_SIZES), MANY, TEXT)


def group_of(question: Question) -> str:
    if question.size is not None:
        return "{}x{}".format(*question.size)
    return MANY if question.images else TEXT


def sit(bench: Bench, group: str) -> Score:
    """Ask both sides one group's questions, greedily, until the end of the turn."""

    def compute() -> Score:
        right, reference_right, different = 0, 0, []
        questions = [question for question in exam(bench.exam_per_size) if group_of(question) == group]
        for question in questions:
            prepared = bench.prepare([Prompt(question.images, question.frames, question.prompt)])
            mine = bench.generate(prepared, ANSWER_TOKENS, stop=True).ids[0].tolist()
            theirs = bench.reference.generate(as_inputs(prepared), ANSWER_TOKENS, stop=True).ids[0].tolist()
            right += bench.runtime.tokenizer.decode(mine).strip() == question.answer
            reference_right += bench.runtime.tokenizer.decode(theirs).strip() == question.answer
            if mine != theirs:
                different.append(question.id)
        return Score(len(questions), right, reference_right, tuple(different))

    if group not in bench.scores:
        bench.scores[group] = compute()
    return bench.scores[group]


def found(score: Score) -> Finding:
    measures = {
        "questions": score.questions,
        "answer_differences": len(score.different),
        "accuracy": score.right / score.questions if score.questions else None,
        "reference_accuracy": score.reference_right / score.questions if score.questions else None,
    }
    where = f"different answers to {', '.join(score.different[:5])}" if score.different else ""
    return Finding(measures, compared=score.questions, where=where)


def exam_of(group: str) -> Callable[[Bench], Finding]:
    """The check of one group."""
    return lambda bench: found(sit(bench, group))


def accuracy(bench: Bench) -> Finding:
    """All groups together."""
    scores = [sit(bench, group) for group in GROUPS]
    return found(
        Score(
            sum(score.questions for score in scores),
            sum(score.right for score in scores),
            sum(score.reference_right for score in scores),
            tuple(name for score in scores for name in score.different),
        )
    )
