"""How far two sets of numbers are apart. Pure functions over numpy arrays.

A measure reports, it does not judge: no threshold lives here. Three rules hold for every function:
what could not be measured (nothing to compare) is None, never 0; NaN and Inf pass through as nan or inf, so that a
verdict over them fails; arrays of different shape raise `ShapeMismatch`, because no number can describe that.
Everything is computed in float64, whatever the dtype of the arrays, and a block of values at a time, so that beside
the arrays themselves little memory is taken. Blocks change no bit of a result: sums are added in numpy's own order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.evidence import Difference

from .scales import in_units, magnitude

Array = NDArray[np.floating] | NDArray[np.integer]
Measures = Mapping[str, float | int | bool | None]
Best = NDArray[np.int64]  # tokens

MANY_TOKENS = 1 << 12  # of a vocabulary in which the best tokens are looked for in groups first
GROUP = 64  # tokens
BLOCK = 1 << 18  # values of one array that are looked at together: 2 MiB in float64, which caches hold
THREADS = min(8, os.cpu_count() or 1)  # that look at blocks of rows


class ShapeMismatch(ValueError):
    """Candidate and reference have different shapes."""


def check_shapes(candidate: Array, reference: Array) -> None:
    if candidate.shape != reference.shape:
        raise ShapeMismatch(f"shape {tuple(candidate.shape)}, the reference has {tuple(reference.shape)}")


def flat_blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Consecutive parts of arrays of equal size, each flattened to [n] in C order."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)


def row_blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Consecutive rows of arrays [..., C] of equal shape: [n, C] of each."""
    rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
    count = max(1, BLOCK // max(1, rows[0].shape[1]))
    for start in range(0, len(rows[0]), count):
        yield tuple(array[start : start + count] for array in rows)


def by_rows(measure: Callable[..., NDArray[np.float64]], *arrays: Array) -> NDArray[np.float64]:
    """A measure of each row of arrays [..., C]: [N'], computed blocks of rows side by side."""
    blocks = [*row_blocks(*arrays)]
    if len(blocks) < 2:
        return np.concatenate([np.empty(0), *(measure(*block) for block in blocks)])
    with ThreadPoolExecutor(THREADS) as pool:  # each in a copy of the context, which has numpy's settings
        results = [pool.submit(copy_context().run, measure, *block) for block in blocks]
        return np.concatenate([result.result() for result in results])


def total(term: Callable[..., NDArray[np.float64]], *arrays: Array) -> float:
    """The sum of a term over all elements: bit for bit `term(*arrays).sum()` of C-contiguous arrays.

    numpy adds pairwise: it halves what is longer than 128 elements, the first half a multiple of 8. Halved by the same
    rule down to blocks, these sums are the same tree of additions.
    """
    return add_halves(term, *(array.reshape(-1) for array in arrays))


def add_halves(term: Callable[..., NDArray[np.float64]], *flat: Array) -> float:
    """`total` of arrays [N]."""
    size = flat[0].size
    if size <= BLOCK:
        return float(term(*(array.astype(np.float64) for array in flat)).sum())
    middle = size // 2 - size // 2 % 8
    first, second = ([array[part] for array in flat] for part in (slice(middle), slice(middle, None)))
    return add_halves(term, *first) + add_halves(term, *second)


def squared(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values**2


def squared_error(candidate: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    return (candidate - reference) ** 2


def largest(values: Iterator[float]) -> float | None:
    """The largest; nan if any is NaN, None if there are none."""
    every = list(values)
    return float(np.max(every)) if every else None


def max_abs(candidate: Array, reference: Array) -> float | None:
    """Largest absolute difference; nan if any is NaN."""
    check_shapes(candidate, reference)
    blocks = flat_blocks(candidate, reference)
    return largest(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() for a, b in blocks)


def token_max_abs(candidate: Array, reference: Array) -> NDArray[np.float64]:
    """Largest absolute difference of each row: [..., N, C] -> [N']; nan if any of the row is NaN."""
    check_shapes(candidate, reference)
    return by_rows(lambda a, b: np.abs(a.astype(np.float64) - b.astype(np.float64)).max(-1), candidate, reference)


def differences(candidate: Array, reference: Array) -> int | None:
    """How many elements are not the same number; NaN differs from everything."""
    check_shapes(candidate, reference)
    if candidate.size == 0:
        return None
    return sum(int((a != b).sum()) for a, b in flat_blocks(candidate, reference))


def nmse(candidate: Array, reference: Array) -> float | None:
    """Squared error over squared reference; None where the reference is all zero."""
    check_shapes(candidate, reference)
    power = total(squared, reference)
    return total(squared_error, candidate, reference) / power if power else None


def relative(candidate: Array, reference: Array) -> float | None:
    """Largest absolute difference over the largest absolute reference value; None where that is zero."""
    return in_units(max_abs(candidate, reference), magnitude(reference))


def psnr(candidate: Array, reference: Array, peak: float | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB, inf for equal arrays; `peak` defaults to the largest of `|reference|`."""
    check_shapes(candidate, reference)
    height = magnitude(reference) if peak is None else peak
    if reference.size == 0 or not height:
        return None
    error = total(squared_error, candidate, reference) / reference.size
    return float(10 * np.log10(height**2 / error)) if error else float("inf")


def token_cosines(candidate: Array, reference: Array) -> NDArray[np.float64]:
    """Cosine of each row: [..., N, C] -> [N']. Two zero rows agree (1), a zero and a nonzero row do not (0)."""
    check_shapes(candidate, reference)
    return by_rows(_cosines, candidate, reference)


def _cosines(candidate: Array, reference: Array) -> NDArray[np.float64]:
    wide, truth = candidate.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(wide, axis=-1) * np.linalg.norm(truth, axis=-1)
    dots = (wide * truth).sum(-1)
    both_zero = ~wide.any(-1) & ~truth.any(-1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)
    return np.where(both_zero, 1.0, cosines)


def closeness(candidate: Array, reference: Array, prefix: str = "") -> dict[str, float | int | None]:
    """Distances, mean and worst-token cosine, and which token is the worst, for arrays [..., N, C]."""
    cosines = token_cosines(candidate, reference)
    measured = cosines.size > 0
    return {
        f"{prefix}max_abs": max_abs(candidate, reference),
        f"{prefix}relative": relative(candidate, reference),
        f"{prefix}nmse": nmse(candidate, reference),
        f"{prefix}psnr": psnr(candidate, reference),
        f"{prefix}mean_cosine": float(cosines.mean()) if measured else None,
        f"{prefix}worst_token_cosine": float(cosines.min()) if measured else None,
        f"{prefix}worst_token": int(np.argmin(cosines)) if measured else None,
    }


def log_softmax(logits: Array) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized


def kl_divergence(candidate: Array, reference: Array) -> NDArray[np.float64]:
    """KL(reference || candidate) in nats of each row of logits: [..., N, V] -> [N']."""
    check_shapes(candidate, reference)
    return by_rows(_kl, candidate, reference)


def _kl(candidate: Array, reference: Array) -> NDArray[np.float64]:
    truth, guess = log_softmax(reference), log_softmax(candidate)
    divergence: NDArray[np.float64] = (np.exp(truth) * (truth - guess)).sum(-1)
    return divergence


def text_loss(logits: Array, ids: NDArray[np.integer]) -> float | None:
    """Mean loss of texts [B, T] under the logits [B, T, V] at each of their tokens, over that of V equally likely ones.

    1 knows nothing of the text, and random weights, whose guesses are firm and wrong, may exceed it; None where no
    token follows another.
    """
    if ids.shape[-1] < 2 or logits.shape[-1] < 2 or not logits.size:
        return None
    totals = by_rows(_log_total, logits[:, :-1]).reshape(ids[:, 1:].shape)
    followed = np.take_along_axis(logits[:, :-1], ids[:, 1:, None], -1)[..., 0]
    return float((totals - followed).mean() / np.log(logits.shape[-1]))


def _log_total(logits: Array) -> NDArray[np.float64]:
    """The logarithm of the sum of each row's exponentials."""
    wide = logits.astype(np.float64)
    largest = wide.max(-1, keepdims=True)
    totals: NDArray[np.float64] = largest[..., 0] + np.log(np.exp(wide - largest).sum(-1))
    return totals


def jaccard(candidate: Array, reference: Array, k: int = 10) -> NDArray[np.float64]:
    """Of each row of logits [..., N, V], the share its k best tokens have in common: [N'], 1 for the same k tokens."""
    return by_rows(partial(_jaccard, min(k, candidate.shape[-1])), candidate, reference)


def _jaccard(k: int, candidate: Array, reference: Array) -> NDArray[np.float64]:
    best = [best_tokens(logits, k) for logits in (candidate, reference)]
    shared: NDArray[np.int64] = (best[0][:, :, None] == best[1][:, None, :]).sum((1, 2))
    return shared / (2 * k - shared)


def best_tokens(logits: Array, k: int) -> NDArray[np.int64]:
    """The k best tokens of each row of logits [N, V] in any order: [N, k]; of equal ones, those argpartition takes."""
    if logits.shape[1] < MANY_TOKENS:
        return np.argpartition(-logits, k - 1)[:, :k]
    return np.stack([_best_of_many(row, k) for row in logits]) if len(logits) else np.empty((0, k), np.int64)


def _best_of_many(logits: Array, k: int) -> NDArray[np.int64]:
    """`best_tokens` of a long row [V]: k of its groups have a maximum of at least `floor`, so the k best tokens do."""
    groups = logits[: len(logits) // GROUP * GROUP].reshape(-1, GROUP)
    floor = np.partition(groups.max(1), -k)[-k]
    candidates = np.flatnonzero(logits >= floor)
    if len(candidates) >= k:
        values = logits[candidates]
        best: NDArray[np.int64] = candidates[values >= np.partition(values, -k)[-k]]
        if len(best) == k:
            return best
    return np.argpartition(-logits, k - 1)[:k]  # equal ones at the edge, or NaN


def top1_gaps(candidate: Array, reference: Array, best: Best, truth: Best) -> NDArray[np.float64]:
    """How far apart the two best tokens are at each row of logits [N, V] of which they differ: [N'].

    The larger of the two sides' gaps, in units of the reference's largest absolute logit of the row, as the near-ties
    of greedy steps; inf where that is zero.

    Args:
        best, truth: the best token of each row on either side [N].
    """
    gaps = np.zeros(len(reference))
    for logits, mine, other in ((candidate, best, truth), (reference, truth, best)):
        chosen, rejected = (
            np.take_along_axis(logits, tokens[:, None], -1)[:, 0].astype(np.float64) for tokens in (mine, other)
        )
        gaps = np.maximum(gaps, chosen - rejected)
    units = np.maximum(reference.max(-1), -reference.min(-1)).astype(np.float64)
    scaled = np.divide(gaps, units, out=np.full(len(gaps), np.inf), where=units > 0)
    differing: NDArray[np.float64] = scaled[best != truth]
    return differing


def logit_closeness(candidate: Array, reference: Array) -> dict[str, float | int | None]:
    """Distances between logits [..., N, V]: max abs, KL in nats, agreement of the best and of the 10 best tokens.

    `scaled_max_abs` is in units of the reference's largest logit, `peak`. Of all scales it varies least from text to
    text: from 14 to 21 on the trained tiny model, while the root mean square is 4 where many tokens are possible and 11
    where few are. `top1_gap` is the largest of `top1_gaps`, 0 where all best tokens are the same: unlike the share of
    positions that agree, it means the same for few positions and for many.
    """
    check_shapes(candidate, reference)
    rows = candidate.reshape(-1, candidate.shape[-1])
    truth = reference.reshape(-1, reference.shape[-1])
    measured = rows.shape[0] > 0
    kl = kl_divergence(rows, truth) if measured else np.empty(0)
    worst, peak = max_abs(rows, truth), magnitude(truth)
    # argmax of NaN is a number that means nothing
    ranked = measured and all(np.isfinite(block).all() for (block,) in flat_blocks(rows))
    best = (rows.argmax(-1), truth.argmax(-1)) if ranked else (np.empty(0, np.int64),) * 2
    return {
        "max_abs": worst,
        "scaled_max_abs": in_units(worst, peak),
        "peak": peak,
        "mean_kl": float(kl.mean()) if measured else None,
        "worst_kl": float(kl.max()) if measured else None,
        "top1_agreement": float((best[0] == best[1]).mean()) if ranked else None,
        "top1_gap": float(top1_gaps(rows, truth, *best).max(initial=0.0)) if ranked else None,
        "jaccard_10": float(jaccard(rows, truth).mean()) if ranked else None,
        "positions": rows.shape[0],
    }


def pool_means(parts: Sequence[Measures], measure: str) -> float | None:
    """Mean of a measure over all positions of several findings, each of which has a mean over its `positions`."""
    means = [(value, part["positions"]) for part in parts if (value := part.get(measure)) is not None]
    total = sum(float(count or 0) for _, count in means)
    return sum(float(value) * float(count or 0) for value, count in means) / total if total else None


def common_prefix(candidate: Sequence[int], reference: Sequence[int]) -> int:
    """Length of the longest common prefix of two id lists."""
    for index, (a, b) in enumerate(zip(candidate, reference, strict=False)):
        if a != b:
            return index
    return min(len(candidate), len(reference))


@dataclass(frozen=True)
class Standing:
    """Where a token stands among the logits of a step: how far below the best, and how many are above it."""

    gap: float
    rank: int


def standing_of(logits: Array, token: int) -> Standing:
    """The standing of a token among logits [V]."""
    wide = logits.astype(np.float64)
    return Standing(float(wide.max() - wide[token]), int((wide > wide[token]).sum()))


def explain_difference(
    row: int, step: int, candidate_token: int, candidate: Array, reference_token: int, reference: Array, margin: float
) -> Difference:
    """Whether a difference in one greedy step is a near-tie, as `judge_difference`.

    Args:
        candidate, reference: logits [V] of that step, on the same history.
        margin: in units of the reference's largest absolute logit.
    """
    tokens = candidate_token, reference_token
    standings = standing_of(candidate, reference_token), standing_of(reference, candidate_token)
    return judge_difference(row, step, tokens, standings, margin * (magnitude(reference) or 0.0))


def judge_difference(
    row: int, step: int, tokens: tuple[int, int], standings: tuple[Standing, Standing], limit: float
) -> Difference:
    """Whether a difference in one greedy step is a near-tie.

    It is one if each side's token is among the other's top 2 and within the limit of the other's best logit.

    Args:
        tokens: the candidate's and the reference's.
        standings: of the reference's token on the candidate's side, and of the candidate's on the reference's.
    """
    near = all(standing.rank < 2 and standing.gap <= limit for standing in standings)
    return Difference(row, step, *tokens, standings[0].gap, standings[1].gap, near)
