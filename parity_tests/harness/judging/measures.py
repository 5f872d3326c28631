"""How far two sets of numbers are apart. Pure functions over numpy arrays.

A measure reports, it does not judge: no threshold lives here. Three rules hold for every function:
what could not be measured (nothing to compare) is None, never 0; NaN and Inf pass through as nan or inf, so that a
verdict over them fails; arrays of different shape raise `ShapeMismatch`, because no number can describe that.
Everything is computed in float64, whatever the dtype of the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.evidence import Difference

Array = NDArray[np.floating] | NDArray[np.integer]
Measures = Mapping[str, float | int | bool | None]


class ShapeMismatch(ValueError):
    """Candidate and reference have different shapes."""


def check_shapes(candidate: Array, reference: Array) -> None:
    if candidate.shape != reference.shape:
        raise ShapeMismatch(f"shape {tuple(candidate.shape)}, the reference has {tuple(reference.shape)}")


def max_abs(candidate: Array, reference: Array) -> float | None:
    """Largest absolute difference; nan if any is NaN."""
    check_shapes(candidate, reference)
    if candidate.size == 0:
        return None
    return float(np.abs(candidate.astype(np.float64) - reference.astype(np.float64)).max())


def differences(candidate: Array, reference: Array) -> int | None:
    """How many elements are not the same number; NaN differs from everything."""
    check_shapes(candidate, reference)
    if candidate.size == 0:
        return None
    return int((candidate != reference).sum())


def nmse(candidate: Array, reference: Array) -> float | None:
    """Squared error over squared reference; None where the reference is all zero."""
    check_shapes(candidate, reference)
    wide, truth = candidate.astype(np.float64), reference.astype(np.float64)
    power = float((truth**2).sum())
    return float(((wide - truth) ** 2).sum()) / power if power else None


def relative(candidate: Array, reference: Array) -> float | None:
    """Largest absolute difference over the largest absolute reference value; None where that is zero."""
    error = max_abs(candidate, reference)
    scale = float(np.abs(reference.astype(np.float64)).max()) if reference.size else 0.0
    return error / scale if error is not None and scale else None


def psnr(candidate: Array, reference: Array, peak: float | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB, inf for equal arrays; `peak` defaults to the largest of `|reference|`."""
    check_shapes(candidate, reference)
    wide, truth = candidate.astype(np.float64), reference.astype(np.float64)
    if truth.size == 0:
        return None
    height = float(np.abs(truth).max()) if peak is None else peak
    error = float(((wide - truth) ** 2).mean())
    if not height:
        return None
    return float(10 * np.log10(height**2 / error)) if error else float("inf")


def token_cosines(candidate: Array, reference: Array) -> NDArray[np.float64]:
    """Cosine of each row: [..., N, C] -> [N']. Two zero rows agree (1), a zero and a nonzero row do not (0)."""
    check_shapes(candidate, reference)
    wide = candidate.reshape(-1, candidate.shape[-1]).astype(np.float64)
    truth = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
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
    truth = log_softmax(reference.reshape(-1, reference.shape[-1]))
    guess = log_softmax(candidate.reshape(-1, candidate.shape[-1]))
    divergence: NDArray[np.float64] = (np.exp(truth) * (truth - guess)).sum(-1)
    return divergence


def jaccard(candidate: Array, reference: Array, k: int = 10) -> NDArray[np.float64]:
    """Of each row of logits [..., N, V], the share its k best tokens have in common: [N'], 1 for the same k tokens."""
    check_shapes(candidate, reference)
    k = min(k, candidate.shape[-1])
    best = [np.argpartition(-logits.reshape(-1, logits.shape[-1]), k - 1)[:, :k] for logits in (candidate, reference)]
    shared: NDArray[np.int64] = (best[0][:, :, None] == best[1][:, None, :]).sum((1, 2))
    return shared / (2 * k - shared)


def logit_closeness(candidate: Array, reference: Array) -> dict[str, float | int | None]:
    """Distances between logits [..., N, V]: max abs, KL in nats, agreement of the best and of the 10 best tokens."""
    check_shapes(candidate, reference)
    rows = candidate.reshape(-1, candidate.shape[-1])
    truth = reference.reshape(-1, reference.shape[-1])
    measured = rows.shape[0] > 0
    kl = kl_divergence(rows, truth) if measured else np.empty(0)
    finite = bool(np.isfinite(rows).all())  # argmax of NaN is a number that means nothing
    return {
        "max_abs": max_abs(rows, truth),
        "mean_kl": float(kl.mean()) if measured else None,
        "worst_kl": float(kl.max()) if measured else None,
        "top1_agreement": float((rows.argmax(-1) == truth.argmax(-1)).mean()) if measured and finite else None,
        "jaccard_10": float(jaccard(rows, truth).mean()) if measured and finite else None,
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


def explain_difference(
    row: int, step: int, candidate_token: int, candidate: Array, reference_token: int, reference: Array, margin: float
) -> Difference:
    """Whether a difference in one greedy step is a near-tie.

    It is one if each side's token is among the other's top 2 and within `margin` of the other's best logit.

    Args:
        candidate, reference: logits [V] of that step, on the same history.
    """

    def gap_and_rank(logits: Array, token: int) -> tuple[float, int]:
        wide = logits.astype(np.float64)
        return float(wide.max() - wide[token]), int((wide > wide[token]).sum())

    candidate_gap, candidate_rank = gap_and_rank(candidate, reference_token)
    reference_gap, reference_rank = gap_and_rank(reference, candidate_token)
    near = candidate_rank < 2 and reference_rank < 2 and candidate_gap <= margin and reference_gap <= margin
    return Difference(row, step, candidate_token, reference_token, candidate_gap, reference_gap, near)
