"""PyTorch's greedy answer is found in a few calls, whatever the artifact drafts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity_tests.fixtures.paths import TINY
from parity_tests.harness.cases.exam import exam
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.cases.tasks import Question
from parity_tests.harness.judging.verdicts import load_profile
from parity_tests.harness.sides.answers import agreed, answer
from parity_tests.harness.sides.artifact.artifact_results import ask_all
from parity_tests.harness.sides.bench import Bench, as_inputs
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import Store
from parity_tests.harness.sides.pytorch.results import Deferred
from qwen3vl_export.contract import DECODER

from ...fixtures.torch_sessions import torch_bench

QUESTIONS = [next(question for question in exam(2) if question.kind == kind) for kind in ("describe", "where", "text")]
TOKENS = 24


@pytest.fixture(scope="module")
def shared_bench() -> Bench:
    return torch_bench(TINY, load_matrix(), load_profile("float32"))


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    """A bench without mistakes and without memory."""
    shared_bench.results.forget()
    shared_bench.reference.results._cache.clear()
    sessions: Any = shared_bench.runtime.sessions
    sessions.after.clear()
    return shared_bench


def spoil(bench: Bench, mistake: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the logits of the artifact's decoder."""
    sessions: Any = bench.runtime.sessions
    sessions.after[DECODER] = lambda outputs: {**outputs, "logits": mistake(outputs["logits"])}


def noise(size: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    return lambda logits: logits + rng.normal(0, size, logits.shape).astype(np.float32)


def only(token: int) -> Callable[[np.ndarray], np.ndarray]:
    """The artifact always chooses the same token."""
    return lambda logits: np.where(np.arange(logits.shape[-1]) == token, 1e3, logits)


def generated(bench: Bench, question: Question, tokens: int = TOKENS) -> list[int]:
    """PyTorch's answer by transformers' own loop."""
    inputs = as_inputs(bench.prepare([question.prompt]))
    ids: list[int] = bench.reference.generate(inputs, tokens, stop=True).ids[0].tolist()
    return ids


def mistakes_of(bench: Bench) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    stops, image = [*bench.runtime.stop_ids], bench.artifact.manifest.facts.image_token_id
    return {
        "none": lambda logits: logits,
        "a few": noise(4.0),
        "nearly all": noise(30.0),
        "ends at once": only(stops[0]),
        "never ends": lambda logits: np.where(np.isin(np.arange(logits.shape[-1]), stops), -1e3, logits),
        "a picture": only(image),
        "one word": only(300),
    }


@pytest.mark.parametrize(
    "mistake", ["none", "a few", "nearly all", "ends at once", "never ends", "a picture", "one word"]
)
def test_pytorch_s_answer_is_what_transformers_generates(mistake: str, bench: Bench) -> None:
    spoil(bench, mistakes_of(bench)[mistake])
    differences = 0
    for question in QUESTIONS:
        answers = answer(bench, bench.prepare([question.prompt]), TOKENS)
        assert list(answers.reference_ids) == generated(bench, question)
        assert (answers.ids == answers.reference_ids) == (not answers.differences)
        differences += len(answers.differences)
        assert not any(difference.near_tie for difference in answers.differences)
    assert bool(differences) == (mistake != "none")


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_answers_are_cut_at_their_longest(tokens: int, bench: Bench) -> None:
    question = QUESTIONS[0]
    spoil(bench, noise(4.0))
    answers = answer(bench, bench.prepare([question.prompt]), tokens)
    assert list(answers.reference_ids) == generated(bench, question, tokens)
    assert len(answers.ids) == len(answers.reference_ids) == tokens


def test_sides_that_agree_take_one_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    choices = Reference.choices
    monkeypatch.setattr(Reference, "choices", lambda *args: calls.append(1) or choices(*args))
    prepared = bench.prepare([QUESTIONS[0].prompt])
    assert not answer(bench, prepared, TOKENS).differences and len(calls) == 1
    spoil(bench, noise(4.0))
    bench.results.forget()
    parted = answer(bench, prepared, TOKENS)
    assert len(calls) == 1 + 1 + len(parted.differences) - (agreed_at_the_end(parted.reference_ids, parted))


def agreed_at_the_end(ids: tuple[int, ...], answers: Any) -> int:
    """1 if the last difference was at the last token, after which nothing is left to be read."""
    return int(answers.differences[-1].step == len(ids) - 1)


def test_near_ties_are_told_by_both_sides(bench: Bench) -> None:
    """The two best tokens of every step are exchanged where they are close enough on the artifact's side."""

    def exchange(logits: np.ndarray) -> np.ndarray:
        order = np.argsort(logits, axis=-1)
        swapped = logits.copy()
        best, second = order[..., -1:], order[..., -2:-1]
        np.put_along_axis(swapped, best, np.take_along_axis(logits, second, -1), -1)
        np.put_along_axis(swapped, second, np.take_along_axis(logits, best, -1), -1)
        return swapped

    spoil(bench, exchange)
    answers = answer(bench, bench.prepare([QUESTIONS[1].prompt]), 3)
    gaps = [(difference.candidate_gap, difference.reference_gap) for difference in answers.differences]
    assert len(gaps) == len(answers.reference_ids)
    for gap, reference_gap in gaps:
        assert gap == pytest.approx(reference_gap, abs=1e-3) and gap > 0


def test_a_streamed_model_answers_all_questions_in_step(bench: Bench, tmp_path: Any) -> None:
    """As the whole model does, with a pass over the checkpoint for each difference of the question that has most."""
    whole = bench.reference
    expected = [generated(bench, question) for question in QUESTIONS]
    spoil(bench, noise(4.0))
    bench.results.keep_all = True
    bench.reference = Reference(TINY, Store(tmp_path, "scope"), streamed=True)
    passes = []
    try:
        prepared = [bench.prepare([question.prompt]) for question in QUESTIONS]
        while True:
            try:
                answers = ask_all(lambda each=each: answer(bench, each, TOKENS) for each in prepared)
                break
            except Deferred:
                passes.append(len(bench.reference.results.requests))
                bench.reference.settle()
    finally:
        bench.reference, bench.results.keep_all = whole, False
    assert [list(each.reference_ids) for each in answers] == expected
    assert passes[0] == len(QUESTIONS) and len(passes) <= 1 + max(len(each.differences) for each in answers)


def test_a_text_gives_away_pytorch_s_tokens_up_to_the_first_difference() -> None:
    text, ends = np.array([5, 6, 7, 2]), frozenset({2})
    assert agreed(text, np.array([5, 6, 7, 2]), 0, ends) == (4, None)
    assert agreed(text, np.array([5, 9, 7, 2]), 0, ends) == (2, 1)
    assert agreed(text, np.array([5, 9, 8, 2]), 2, ends) == (3, 2)  # what is known is not judged again
    assert agreed(np.array([5, 2, 7]), np.array([5, 2, 7]), 0, ends) == (2, None)
    assert agreed(np.array([5, 6]), np.array([5, 6]), 0, ends) == (2, None)
