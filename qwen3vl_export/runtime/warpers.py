"""Which tokens remain to be drawn from, and how likely each is: temperature, top-k, top-p and min-p.

Semantics and order are those of transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper` and
`MinPLogitsWarper`, ties included. A step that selects few of 151,936 tokens reads all of them once or twice and sorts
only those few.

Knows numbers; nothing about penalties, seeds or text.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arrays import Bools, Floats, Ints

STRIDES = 64  # into which `kth_largest` divides scores; so many consecutive maxima are computed by one instruction


def warp(scores: Floats, temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[Ints, Floats]:
    """The ids of the tokens that remain of scores [V], ascending, and their scores divided by the temperature, float32.

    Args:
        top_k, top_p, min_p: as in `Sampling`; 0, 1 and 0 keep every token.
    """
    scores = np.divide(scores, np.float32(temperature), dtype=np.float32)
    selections: list[Callable[[Floats], Bools]] = []
    if 0 < top_k < len(scores):
        selections.append(lambda scores: scores >= kth_largest(scores, top_k))
    if top_p < 1:
        selections.append(lambda scores: select_nucleus(softmax(scores), top_p))
    if min_p > 0:
        selections.append(lambda scores: select_likely(softmax(scores), min_p))
    ids: Ints | None = None
    for select in selections:
        places = np.flatnonzero(select(scores))
        ids = places if ids is None else ids[places]
        scores = scores[places]
    return np.arange(len(scores)) if ids is None else ids, scores


def kth_largest(scores: Floats, k: int) -> Floats:
    """The k-th largest of scores [V], 1 <= k <= V.

    The k-th largest of the maxima of disjoint parts is a lower bound, which few scores reach.
    """
    parts = len(scores) // STRIDES
    if k <= parts:
        maxima = scores[: parts * STRIDES].reshape(STRIDES, parts).max(axis=0)
        scores = scores[np.flatnonzero(scores >= np.partition(maxima, -k)[-k])]
    kth: Floats = np.partition(scores, -k)[-k]
    return kth


def select_nucleus(probabilities: Floats, top_p: float) -> Bools:
    """A mask [N] of the likeliest tokens whose probabilities add up to `top_p`; at least one is selected.

    Tokens below (1 - top_p) / N can all be dropped without exceeding 1 - top_p, so only the others are sorted. Of
    tokens as likely as the last one that is dropped, those of lower ids are dropped first.
    """
    selected = probabilities >= (1 - top_p) / len(probabilities)
    ids = np.flatnonzero(selected)
    candidates = probabilities[ids]
    ascending = np.sort(candidates)
    below = probabilities[np.flatnonzero(~selected)].sum()
    dropped = min(int((below + np.cumsum(ascending) <= 1 - top_p).sum()), len(ids) - 1)
    if dropped:
        last = ascending[dropped - 1]
        less, ties = candidates < last, np.flatnonzero(candidates == last)
        selected[ids[less]] = False
        selected[ids[ties[: dropped - int(less.sum())]]] = False
    return selected


def select_likely(probabilities: Floats, min_p: float) -> Bools:
    """A mask [N] of the tokens at least `min_p` times as likely as the likeliest."""
    likely: Bools = probabilities >= np.float32(min_p) * probabilities.max()
    return likely


def softmax(scores: Floats) -> Floats:
    """Softmax of [V]."""
    result: Floats = scores - scores.max()
    np.exp(result, out=result)
    result /= result.sum()
    return result
