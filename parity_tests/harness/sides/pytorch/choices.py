"""What PyTorch would choose at every step of a given text: of its logits the part that greedy tokens are compared by.

Logits of a published vocabulary take 0.6 MB a token, this takes 32 bytes. Knows logits and ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.runtime.arrays import Float32, Ints

from ...judging.measures import Standing, standing_of
from ...judging.scales import magnitude
from .forward import Continuation


@dataclass(frozen=True)
class Choices:
    """PyTorch's best token at each of T steps, and where the token of the text stands there.

    Attributes:
        ids: int64 [T].
        gaps: [T], how far the logit of the text's token is below the best.
        ranks: int64 [T], how many tokens are above it.
        scales: [T], the largest absolute logit.
    """

    ids: Ints
    gaps: NDArray[np.float64]
    ranks: Ints
    scales: NDArray[np.float64]

    def standing_of(self, step: int) -> Standing:
        """Where the token of the text stands at a step."""
        return Standing(float(self.gaps[step]), int(self.ranks[step]))


def choices_of(logits: Float32, text: Ints) -> Choices:
    """The choices at the steps of a text.

    Args:
        logits: [T, V], each given what is before its step.
        text: int64 [T].
    """
    standings = [standing_of(step, token) for step, token in zip(logits, text.tolist(), strict=True)]
    return Choices(
        logits.argmax(-1),
        np.array([standing.gap for standing in standings], np.float64),
        np.array([standing.rank for standing in standings], np.int64),
        np.array([magnitude(step) for step in logits], np.float64),
    )


def read_choices(continuation: Continuation, text: Ints) -> Choices:
    """The choices at the steps of a text, of which all but the last token were read after a prompt of one row.

    Args:
        text: int64 [T], T >= 1.
    """
    return choices_of(continuation.logits[0], text)
