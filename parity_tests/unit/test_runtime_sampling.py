"""The next token: scores as transformers' logits processors make them, draws that a seed repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
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
    choose,
    from_generation_config,
    override,
    penalized,
    probabilities,
    warped,
)

RNG = np.random.default_rng(2)
LOGITS = (RNG.standard_normal((8, 500)) * 4).astype(np.float32)
SEEN = RNG.integers(0, 500, (8, 30))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 20, 999])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_scores_equal_transformers(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    sampling = Sampling(True, temperature, top_k, top_p, penalty)
    expected, ids = torch.from_numpy(LOGITS), torch.from_numpy(SEEN)
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for step in steps:
        expected = step(ids, expected)
    for row, seen, wanted in zip(LOGITS, SEEN, expected.numpy(), strict=True):
        before = row.copy()
        np.testing.assert_allclose(warped(penalized(row, seen, penalty), sampling), wanted, rtol=1e-6)
        np.testing.assert_array_equal(row, before)  # the caller's logits are left alone


def test_greedy_is_the_largest() -> None:
    generator = np.random.default_rng(0)
    assert [choose(row, SEEN[0], GREEDY, generator) for row in LOGITS] == LOGITS.argmax(axis=1).tolist()


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
    draws = [choose(logits, SEEN[0], sampling, generator) for _ in range(6000)]
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 6000, probabilities(logits), atol=0.02)


def test_tokens_that_dropped_out_are_never_drawn() -> None:
    generator = np.random.default_rng(1)
    sampling = Sampling(True, temperature=5.0, top_k=3)
    best = set(np.argsort(LOGITS[0])[-3:].tolist())
    assert {choose(LOGITS[0], SEEN[0], sampling, generator) for _ in range(500)} == best


def test_half_precision_logits() -> None:
    generator = np.random.default_rng(1)
    half = LOGITS[0].astype(np.float16)
    assert 0 <= choose(half, SEEN[0], Sampling(True, 0.7, 20, 0.8, 1.1), generator) < 500


def test_nan_stops_and_names_the_step() -> None:
    broken = LOGITS.copy()
    broken[3, 17] = np.nan
    with pytest.raises(ArtifactError, match=r"not numbers \(NaN\) at step 4"):
        Chooser(GREEDY, 8)(broken, SEEN, 4)


def test_defaults_of_a_generation_config() -> None:
    assert from_generation_config({}) == Sampling(top_k=50)
    official = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    assert from_generation_config(official) == Sampling(True, 0.7, 20, 0.8, 1.0)
    assert from_generation_config({"top_k": None, "temperature": None, "do_sample": None}) == Sampling(top_k=50)


def test_a_temperature_decides_whether_to_sample() -> None:
    assert override(GREEDY, temperature=0.5) == Sampling(True, 0.5)
    assert override(Sampling(True, 0.7, 20), temperature=0) == Sampling(False, 1.0, 20)
    assert override(Sampling(True, 0.7, 20), top_k=0, seed=3) == Sampling(True, 0.7, 0, seed=3)


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.5}, {"repetition_penalty": 0.0},
     {"seed": -1}],
)  # fmt: skip
def test_settings_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        override(GREEDY, **values)
