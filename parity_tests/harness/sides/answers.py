"""The greedy answers of both sides to a question, PyTorch's without generating it token by token.

The artifact's answer is a draft, which PyTorch reads in one call. If it would choose the same token at every step, its
own answer is the same, by induction (`checks/induction.py`). At the first step where it would not, PyTorch's answer
goes on with its own choice, the artifact drafts what follows that, and PyTorch reads again. So there is a call for each
difference instead of one for each token, and the result is PyTorch's own greedy answer, whatever the drafts are: it is
speculative decoding (Leviathan et al., "Fast inference from transformers via speculative decoding", ICML 2023,
arXiv:2211.17192), greedily. Results of both sides are recalled, so that it can be carried out again until none is
deferred.

Knows token ids; nothing about text or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3vl_export.evidence import Difference
from qwen3vl_export.runtime import Prepared
from qwen3vl_export.runtime.arrays import Ints

from ..judging.measures import judge_difference
from .bench import Bench, as_inputs
from .drafts import visual_ids


@dataclass(frozen=True)
class Answers:
    """The greedy answers of both sides, with the token that ended them, and each step at which the artifact would
    choose another token than PyTorch after the same history."""

    ids: tuple[int, ...]
    reference_ids: tuple[int, ...]
    differences: Sequence[Difference]


def answer(bench: Bench, prepared: Prepared, new_tokens: int) -> Answers:
    """Both answers to a prompt of one row.

    Args:
        new_tokens: at most.

    Raises:
        Deferred: a result of either side is not there yet.
    """
    facts = bench.artifact.manifest.facts
    limit = min(new_tokens, facts.max_position_embeddings - prepared.input_ids.shape[1] + 1)
    ends = frozenset(bench.generation_reference.stop_ids) | visual_ids(facts)
    own = bench.draft(prepared, np.empty(0, np.int64), limit)
    draft, known = own, np.empty(0, np.int64)
    differences: list[Difference] = []
    while True:
        text = np.concatenate([known, draft.ids])
        choices = bench.reference.choices(as_inputs(prepared), text[None])
        length, step = agreed(text, choices.ids, len(known), ends)
        if step is not None:
            token = int(choices.ids[step])
            standings = draft.standing_of(step - len(known), token), choices.standing_of(step)
            margin = bench.profile.settings["near_tie_margin"] * float(choices.scales[step])
            differences.append(judge_difference(0, step, (int(text[step]), token), standings, margin))
            text[step] = token
        known = text[:length]
        if int(known[-1]) in ends or length >= limit:
            return Answers(tuple(own.ids.tolist()), tuple(known.tolist()), differences)
        draft = bench.draft(prepared, known, limit - length)


def agreed(text: Ints, choices: Ints, known: int, ends: frozenset[int]) -> tuple[int, int | None]:
    """How many tokens of PyTorch's answer a text [T] gives away, and the step at which it would choose another, if any.

    Args:
        choices: PyTorch's at each step [T].
        known: how many of the text's tokens are PyTorch's own.
        ends: tokens that end an answer.
    """
    for step in range(known, len(text)):
        if choices[step] != text[step]:
            return step + 1, step
        if int(text[step]) in ends:
            return step + 1, None
    return len(text), None
