"""Which tokens remain to be drawn: the shortcuts select what sorting every token would, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwen3vl_export.runtime.sampling import Sampling, choose_token
from qwen3vl_export.runtime.warpers import kth_largest, select_nucleus, warp

RNG = np.random.default_rng(5)
VOCABULARY = 151936
DYADIC = 2**20  # sums of so many parts of 1 are exact in float32, in whatever order


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 130, 4096, 5000])
@pytest.mark.parametrize("step", [0.0, 0.5, 1e-6])
def test_the_kth_largest_is_that_of_all_sorted(size: int, step: float) -> None:
    scores = RNG.standard_normal(size).astype(np.float32)
    scores = np.round(scores / step) * np.float32(step) if step else scores
    scores[RNG.integers(0, size, size // 3)] = -np.inf
    for k in {1, 2, 20, size // 64, size // 64 + 1, size - 1, size} & set(range(1, size + 1)):
        assert kth_largest(scores, k) == np.sort(scores)[-k]


@pytest.mark.parametrize("size", [1, 5, 300, 4000])
@pytest.mark.parametrize("levels", [1, 3, 40])  # of probability: with few, nearly every token is one of a tie
@pytest.mark.parametrize("top_p", [0.0, 0.25, 0.5, 0.9375, 1 - 2**-12])
def test_a_nucleus_is_that_of_all_sorted(size: int, levels: int, top_p: float) -> None:
    parts = RNG.integers(1, levels + 1, size)
    likeliest = int(RNG.integers(size))
    parts[likeliest] = DYADIC - (parts.sum() - parts[likeliest])
    probabilities = (parts / DYADIC).astype(np.float32)
    order = np.lexsort((np.arange(size), parts))  # the least likely first, of a tie the lowest id
    expected = np.ones(size, np.bool_)
    expected[order[:-1][np.cumsum(parts[order[:-1]]) <= (1 - top_p) * DYADIC]] = False
    np.testing.assert_array_equal(select_nucleus(probabilities, top_p), expected)


def test_division_by_the_temperature_makes_ties() -> None:
    """Logits that are equal once divided are a tie of top-k, though one of them is larger."""
    logits = (1.75 + np.arange(16) * 2**-23).astype(np.float32)
    divided = logits / np.float32(1.5)
    kept = {k: warp(logits, 1.5, k, 1, 0)[0] for k in range(1, 16)}
    for k, ids in kept.items():
        assert ids.tolist() == np.flatnonzero(divided >= np.sort(divided)[-k]).tolist()
    assert any(len(ids) > k for k, ids in kept.items()) and len(np.unique(logits)) == 16


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (
            {"top_k": 20, "top_p": 0.8},
            [24516, 125615, 125615, 90384, 105518, 51956, 142122, 6485, 6485, 144198, 135007, 88155],
        ),
        (
            {"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "presence_penalty": 1.5},
            [24516, 125615, 125615, 90384, 105518, 90384, 142122, 6485, 6485, 144198, 138471, 88155],
        ),
        ({"top_p": 0.95}, [35095, 107863, 108410, 64493, 129133, 36215, 142122, 2275, 4600, 145028, 138156, 88155]),
        ({"min_p": 0.1}, [24516, 125615, 125615, 90384, 105518, 90384, 138394, 1589, 6485, 144198, 138471, 88351]),
        (
            {"top_p": 0.9, "min_p": 0.01, "temperature": 1.3},
            [44506, 103695, 104096, 56042, 128688, 30530, 144330, 2203, 3861, 145684, 138067, 85996],
        ),
        ({}, [35561, 107465, 107863, 63556, 128736, 36215, 142142, 2275, 4594, 145060, 138120, 88155]),
    ],
)
def test_a_seed_gives_the_tokens_it_always_gave(settings: dict[str, Any], tokens: list[int]) -> None:
    """Recorded before any step took a shortcut: logits in quarters, so that most tokens are one of a tie."""
    generator = np.random.default_rng(11)
    logits = (np.round(generator.standard_normal((4, VOCABULARY)) * 8) / 4).astype(np.float32)
    seen = generator.integers(0, VOCABULARY, 3000)
    sampling = Sampling(True, **{"temperature": 0.7, **settings})
    assert [choose_token(row, seen, sampling, generator, 1000) for row in logits for _ in range(3)] == tokens
