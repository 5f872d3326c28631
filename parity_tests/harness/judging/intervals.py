"""How far scores of a sample of questions can be trusted: intervals at 95 %, and a test of a paired difference.

Right and wrong answers are counted: Wilson's interval for a share, Newcombe's for the difference of two shares of the
same questions, McNemar's exact test of whether there is one. Graded scores (of `anls` or `iou`) have none of these, and
get percentile bootstrap intervals over the questions. Knows numbers; nothing about what they score.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # of the normal distribution, at 97.5 %
RESAMPLES = 2000
SEED = 0  # equal scores give equal intervals
BLOCK = 1 << 22  # numbers that are drawn at a time

Interval = tuple[float, float]


def wilson(right: int, count: int) -> Interval:
    """The interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22,
    1927).

    Args:
        right: of `count`, which is at least 1.
    """
    share, z2 = right / count, Z**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, center - half), min(1.0, center + half)


def newcombe(both: int, first: int, second: int, neither: int) -> Interval:
    """The interval of the difference of two shares of the same questions (Newcombe, "Improved confidence intervals for
    the difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998, method 10).

    Args:
        both, first, second, neither: how many questions both sides, the first alone, the second alone and no side
            answered right.
    """
    count = both + first + second + neither
    shares = (both + first) / count, (both + second) / count
    (low1, high1), (low2, high2) = wilson(both + first, count), wilson(both + second, count)
    product = both * neither - first * second
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    correlation = (max(product - count / 2, 0.0) if product > 0 else product) / sqrt(margins) if margins else 0.0
    difference = shares[0] - shares[1]

    def reach(near: float, far: float) -> float:
        return sqrt(max(0.0, near**2 - 2 * correlation * near * far + far**2))

    return difference - reach(shares[0] - low1, high2 - shares[1]), difference + reach(
        high1 - shares[0], shares[1] - low2
    )


def mcnemar(first: int, second: int) -> float:
    """The probability, if both sides are equally good, that their right answers differ at least this much (McNemar,
    "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947; exact and
    two-sided).

    Args:
        first, second: how many questions one side alone answered right.
    """
    count, fewer = first + second, min(first, second)
    tail = sum(comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**count))


def bootstrap(values: Sequence[float]) -> Interval:
    """The interval of a mean (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentiles
    over resamples). Of paired differences it is that of the difference of the means."""
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(SEED)
    at_once = max(1, BLOCK // len(array))
    means = [
        array[rng.integers(0, len(array), (min(at_once, RESAMPLES - start), len(array)))].mean(axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    every: NDArray[np.float64] = np.concatenate(means)
    low, high = np.quantile(every, [0.025, 0.975]).tolist()
    return low, high
