"""Questions with accepted answers, asked of both sides: do they answer alike, and how often is that right?

Knows how to ask and how to count. The questions are those of tasks (`cases/tasks.py`): users' of a file, a check each,
and the held-out exam, a check for each picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qwen3vl_export.evidence.tasks import AnsweredQuestion
from qwen3vl_export.runtime import Prepared
from qwen3vl_export.runtime.prompts.reply import parse_reply

from ..cases.tasks import Question
from ..judging.outcome import Finding
from ..judging.scores import score
from ..sides.answers import answer
from ..sides.artifact.artifact_results import ask_all
from ..sides.bench import Bench
from ..sides.counts import Asked
from .stages import compare_pixels, compare_prompts

LONGEST_ANSWER = 500  # characters of an answer in the evidence
SHOWN = 60  # of them in a message
NO_PIXELS = Finding({"grid_differences": 0, "pixel_max_abs": 0.0}, 0)  # of a question without pictures


def ask_all_of(bench: Bench, questions: Sequence[Question]) -> list[AnsweredQuestion]:
    """Questions as both sides answer them, greedily, until the end of the turn.

    Raises:
        Deferred: a result of either side is not there yet; all have been asked for.
    """
    return [asked.answered for asked in ask_all(partial(ask, bench, question) for question in questions)]


def ask(bench: Bench, question: Question) -> Asked:
    """A question with both answers and their scores; it is asked once."""
    if question.name not in bench.asked:
        prepared = bench.prepare([question.prompt])
        answers = answer(bench, prepared, question.new_tokens)
        texts = [text_of(bench, question, prepared, ids) for ids in (answers.ids, answers.reference_ids)]
        own, reference = (score(text, question) for text in texts)
        answered = AnsweredQuestion(
            id=question.id,
            kind=question.kind,
            metric=question.metric,
            score=own,
            reference_score=reference,
            same=answers.ids == answers.reference_ids,
            answer=texts[0][:LONGEST_ANSWER],
            reference_answer=texts[1][:LONGEST_ANSWER],
        )
        bench.asked[question.name] = Asked(answered, answers.differences)
    return bench.asked[question.name]


def text_of(bench: Bench, question: Question, prepared: Prepared, ids: Sequence[int]) -> str:
    """What is scored of an answer: its text without reasoning; boxes may be written in special tokens."""
    text = bench.runtime.tokenizer.decode(ids, skip_special=question.metric != "iou")
    return parse_reply(text, thinking=prepared.texts[0].rstrip().endswith("<think>")).content


def finding_of(questions: Sequence[AnsweredQuestion]) -> Finding:
    """What questions are judged by: how many are answered differently, and the share that is right."""
    different = [question.id for question in questions if not question.same]
    measures = {
        "questions": len(questions),
        "answer_differences": len(different),
        "accuracy": mean([question.score for question in questions]),
        "reference_accuracy": mean([question.reference_score for question in questions]),
    }
    where = f"different answers to {', '.join(different[:5])}" if different else ""
    return Finding(measures, compared=len(questions), where=where)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def task_check(question: Question) -> Callable[[Bench], Finding]:
    """The check of a user's question: both answers token for token, and its prompt and pixels against those that
    transformers makes of the same files."""

    def check(bench: Bench) -> Finding:
        asked = ask(bench, question)
        prompts = [question.prompt]
        prepared = bench.prepare(prompts)
        text = compare_prompts(bench, prompts, prepared)
        pixels = compare_pixels(bench, prompts, prepared) if question.images else NO_PIXELS
        near_ties = sum(difference.near_tie for difference in asked.differences)
        measures = {
            "score": asked.answered.score,
            "reference_score": asked.answered.reference_score,
            "near_ties": near_ties,
            "unexplained_differences": len(asked.differences) - near_ties,
            "id_differences": text.measures["id_differences"],
            **{name: pixels.measures[name] for name in NO_PIXELS.measures},
        }
        said, meant = (repr(each[:SHOWN]) for each in (asked.answered.answer, asked.answered.reference_answer))
        parted = "" if asked.answered.same else f"answers {said}, PyTorch {meant}"
        where = "; ".join(filter(None, (parted, text.where, pixels.where)))
        return Finding(measures, text.compared, where, asked.differences, answers=(asked.answered,))

    return check
