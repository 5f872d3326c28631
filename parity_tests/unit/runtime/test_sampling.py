"""The next token: scores as transformers' logits processors make them, draws that a seed repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime.sampling import (
    GREEDY,
    Chooser,
    Sampling,
    choose_token,
    from_generation_config,
    override,
    penalize_presence,
    penalize_repetition,
    resolve,
)
from qwen3vl_export.runtime.warpers import softmax, warp

RNG = np.random.default_rng(2)
LOGITS = (RNG.standard_normal((8, 500)) * 4).astype(np.float32)
SEEN = RNG.integers(0, 500, (8, 30))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 20, 999])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_scores_equal_transformers(temperature: float, top_k: int, top_p: float, min_p: float, penalty: float) -> None:
    expected, ids = torch.from_numpy(LOGITS), torch.from_numpy(SEEN)
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    for step in steps:
        expected = step(ids, expected)
    for row, seen, reference in zip(LOGITS, SEEN, expected.numpy(), strict=True):
        before = row.copy()
        left, scores = warp(penalize_repetition(row, seen, penalty), temperature, top_k, top_p, min_p)
        np.testing.assert_array_equal(left, np.flatnonzero(reference > -np.inf))
        np.testing.assert_allclose(scores, reference[left], rtol=1e-6)
        np.testing.assert_array_equal(row, before)  # the caller's logits are left alone


def test_the_presence_penalty_is_that_of_vllm() -> None:
    """`logits -= presence_penalties * output_mask` (vllm/model_executor/layers/utils.py, apply_penalties)."""
    for row, answer in zip(LOGITS, SEEN[:, :12], strict=True):
        mask = np.isin(np.arange(len(row)), answer)
        before = row.copy()
        np.testing.assert_array_equal(penalize_presence(row, answer, 1.5), row - np.float32(1.5) * mask)
        np.testing.assert_array_equal(row, before)
        assert penalize_presence(row, answer, 0) is row and penalize_presence(row, answer[:0], 1.5) is row


def test_the_presence_penalty_counts_what_was_generated() -> None:
    logits = np.array([[0.0, 1.0, 1.5, 3.0]], np.float32)
    seen = [np.array([2, 3])]  # 2 is of the prompt, 3 was generated
    penalty = Sampling(presence_penalty=2.0)
    assert Chooser(penalty, 1)(logits, seen, 0).tolist() == [3]
    assert Chooser(penalty, 1)(logits, seen, 1).tolist() == [2]
    assert Chooser(penalty, 1)(logits, seen, 2).tolist() == [1]


def test_greedy_is_the_largest() -> None:
    generator = np.random.default_rng(0)
    assert [choose_token(row, SEEN[0], GREEDY, generator) for row in LOGITS] == LOGITS.argmax(axis=1).tolist()


def test_a_seed_repeats_and_rows_are_independent() -> None:
    hot = Sampling(True, temperature=3.0, seed=7)

    def draw(rows: list[int], sampling: Sampling = hot) -> list[list[int]]:
        chooser = Chooser(sampling, len(rows))
        return [chooser(LOGITS[rows], SEEN[rows], step).tolist() for step in range(20)]

    assert draw([0, 1]) == draw([0, 1])
    assert [row[0] for row in draw([0, 1])] == [row[0] for row in draw([0, 5])]  # another neighbour changes nothing
    assert draw([0, 1]) != draw([0, 1], override(hot, seed=8))
    assert draw([0, 1], override(hot)) == draw([0, 1])
    unseeded = Sampling(True, temperature=3.0)
    assert draw([0, 1], unseeded) != draw([0, 1], unseeded)


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.array([0.0, 1.0, 2.0, -50.0], np.float32)
    generator = np.random.default_rng(1)
    sampling = Sampling(True)
    draws = [choose_token(logits, SEEN[0], sampling, generator) for _ in range(6000)]
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 6000, softmax(logits), atol=0.02)


def test_tokens_that_dropped_out_are_never_drawn() -> None:
    generator = np.random.default_rng(1)
    sampling = Sampling(True, temperature=5.0, top_k=3)
    best = set(np.argsort(LOGITS[0])[-3:].tolist())
    assert {choose_token(LOGITS[0], SEEN[0], sampling, generator) for _ in range(500)} == best


def test_half_precision_logits() -> None:
    generator = np.random.default_rng(1)
    half = LOGITS[0].astype(np.float16)
    assert 0 <= choose_token(half, SEEN[0], Sampling(True, 0.7, 20, 0.8, 0.05, 1.1, 1.5), generator, 3) < 500


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_logits_that_are_no_numbers_stop_and_name_the_step(value: float, kind: str) -> None:
    broken = LOGITS.copy()
    broken[3, 17] = value
    with pytest.raises(ArtifactError, match=rf"not numbers \({kind}\) at step 4"):
        Chooser(GREEDY, 8)(broken, SEEN, 4)
    with pytest.raises(ArtifactError, match=r"not numbers \(infinite\) at step 0"):
        Chooser(GREEDY, 1)(np.full((1, 9), -np.inf, np.float32), SEEN[:1], 0)
    masked = LOGITS.copy()
    masked[:, 17] = -np.inf  # a token that is ruled out is no fault
    assert (Chooser(GREEDY, 8)(masked, SEEN, 0) != 17).all()


def test_defaults_of_a_generation_config() -> None:
    assert from_generation_config({}) == Sampling(top_k=50)
    official = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
    assert from_generation_config(official) == Sampling(True, 0.7, 20, 0.8, repetition_penalty=1.1)
    assert from_generation_config({"min_p": 0.1, "presence_penalty": 1.5}) == Sampling(
        top_k=50, min_p=0.1, presence_penalty=1.5
    )
    assert from_generation_config({"top_k": None, "temperature": None, "do_sample": None}) == Sampling(top_k=50)


def test_a_temperature_decides_whether_to_sample() -> None:
    assert override(GREEDY, temperature=0.5) == Sampling(True, 0.5)
    assert override(Sampling(True, 0.7, 20), temperature=0) == Sampling(False, 1.0, 20)
    assert override(Sampling(True, 0.7, 20), top_k=0, seed=3) == Sampling(True, 0.7, 0, seed=3)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 1e308}, {"temperature": 1e-40}, {"repetition_penalty": 1e39},
     {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.5}, {"repetition_penalty": 0.0},
     {"seed": -1}, {"min_p": -0.1}, {"min_p": 1.1}, {"presence_penalty": 2.5}, {"presence_penalty": float("nan")}],
)  # fmt: skip
def test_settings_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        override(GREEDY, **values)


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        (GREEDY, "greedy"),
        (Sampling(repetition_penalty=1.1, top_k=5, seed=3), "greedy, repetition_penalty 1.1"),
        (Sampling(do_sample=True, seed=3), "temperature 1.0, seed 3"),
        (
            Sampling(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, presence_penalty=1.5, seed=0),
            "temperature 0.7, top_k 20, top_p 0.8, presence_penalty 1.5, seed 0",
        ),
    ],
)
def test_what_has_an_effect_is_said(sampling: Sampling, text: str) -> None:
    assert str(sampling) == text


def test_what_is_drawn_has_a_seed() -> None:
    drawn = Sampling(do_sample=True)
    seeds = {resolve(drawn, {"max_new_tokens": 5, "temperature": None}).seed for _ in range(20)}
    assert None not in seeds and len(seeds) > 15
    assert resolve(drawn, {"seed": 4, "top_k": 3}) == Sampling(do_sample=True, top_k=3, seed=4)
    assert resolve(drawn, {"temperature": 0}).seed is None and resolve(GREEDY, {}) == GREEDY
    assert resolve(GREEDY, {"temperature": 2.0}).seed is not None
