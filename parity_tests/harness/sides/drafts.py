"""The artifact's greedy answer to a question, of which the part is kept that PyTorch's answer is compared by.

Where an answer begins with given tokens, they follow the prompt at the positions that generated tokens have. Logits of
a published vocabulary take 0.6 MB a token, the best ones of a step 48 bytes. Knows the runtime's steps; judges nothing.

Legend: S tokens of the prompt, G given tokens, T tokens of the answer after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.contract import Facts
from qwen3vl_export.runtime import Prepared
from qwen3vl_export.runtime.arrays import Ints
from qwen3vl_export.runtime.generate import Step

from ..judging.measures import Standing, best_tokens

BEST = 4  # tokens that are kept of a step; a near-tie is among the best two


@dataclass(frozen=True)
class Draft:
    """An answer, and the best tokens of each step with their logits, best first.

    Attributes:
        ids: int64 [T].
        best: int64 [T, BEST].
        logits: [T, BEST].
    """

    ids: Ints
    best: Ints
    logits: NDArray[np.float64]

    def standing_of(self, step: int, token: int) -> Standing:
        """Where a token stands at a step; infinitely far below the best if it is not among those that are kept."""
        place = np.flatnonzero(self.best[step] == token)
        if not place.size:
            return Standing(np.inf, BEST)
        logits = self.logits[step]
        return Standing(float(logits[0] - logits[place[0]]), int((logits > logits[place[0]]).sum()))


def draft_of(steps: Iterable[Step]) -> Draft:
    """The answer of a loop's steps over one row."""
    ids, best, logits = [], [], []
    for step in steps:
        row = step.logits[0].astype(np.float64)
        order = best_tokens(row[None], BEST)[0]
        order = order[np.argsort(-row[order], kind="stable")]
        ids.append(int(step.tokens[0]))
        best.append(order)
        logits.append(row[order])
    return Draft(np.array(ids, np.int64), np.array(best), np.array(logits))


def visual_ids(facts: Facts) -> frozenset[int]:
    """The tokens that stand for pictures: an answer ends with one, for what follows it could not be read back."""
    return frozenset((facts.image_token_id, facts.video_token_id))


def followed_by(prepared: Prepared, given: Ints) -> Prepared:
    """A prompt of one row [1, S], with the given tokens [G] of its answer."""
    if not len(given):
        return prepared
    length = int(prepared.attention_mask.sum())
    positions = prepared.rope_deltas[0, 0] + length + np.arange(len(given))
    return replace(
        prepared,
        input_ids=np.concatenate([prepared.input_ids, given[None]], axis=1),
        attention_mask=np.concatenate([prepared.attention_mask, np.ones((1, len(given)), np.int64)], axis=1),
        position_ids=np.concatenate([prepared.position_ids, np.broadcast_to(positions, (3, 1, len(given)))], axis=2),
    )
