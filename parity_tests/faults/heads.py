"""Mistakes of models that embed or rerank: in the runtime around the decoder, and in a reranker's two rows of weights.

Knows how to break things; not whether anybody notices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from qwen3vl_export.contract import Facts
from qwen3vl_export.runtime import model, retrieval
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.heads import embeddings_of, scores_of
from qwen3vl_export.runtime.positions import rope_index
from qwen3vl_export.runtime.prepare import Prepared

from ..harness.diagnosis.suspects import attribute
from ..harness.sides.bench import Bench
from .weights import Weights


def pooled_a_token_early(bench: Bench) -> AbstractContextManager[None]:
    """The embedding is of the token before the last."""

    def prefill_less(sessions: Any, prepared: Prepared, *rest: Any) -> Any:
        shorter = replace(
            prepared,
            input_ids=prepared.input_ids[:, :-1],
            attention_mask=prepared.attention_mask[:, :-1],
            position_ids=prepared.position_ids[:, :, :-1],
        )
        return prefill(sessions, shorter, *rest)

    return attribute(model, "prefill", prefill_less)


def not_normalized(bench: Bench) -> AbstractContextManager[None]:
    return attribute(model, "embeddings_of", lambda hidden, dimensions, _: embeddings_of(hidden, dimensions, False))


def padded_on_the_right(bench: Bench) -> AbstractContextManager[None]:
    """Short rows of a batch are padded behind their tokens, so that the last column is padding."""
    preparer = bench.runtime.preparer
    assemble = preparer.assemble

    def assemble_right(*args: Any) -> Prepared:
        prepared = assemble(*args)
        ids, mask = prepared.input_ids.copy(), prepared.attention_mask.copy()
        for row, tokens in enumerate(mask.sum(axis=1).tolist()):
            ids[row], mask[row] = np.roll(ids[row], tokens), np.roll(mask[row], tokens)
        positions, deltas = rope_index(ids, mask, prepared.image_grid_thw, preparer.facts)
        return replace(prepared, input_ids=ids, attention_mask=mask, position_ids=positions, rope_deltas=deltas)

    return attribute(preparer, "assemble", assemble_right)


def instruction_of_another(bench: Bench) -> AbstractContextManager[None]:
    """The default instruction of a reranker, given to an embedding model."""
    return attribute(retrieval, "EMBEDDING_INSTRUCTION", retrieval.RERANKER_INSTRUCTION)


def scored_with_the_opposite_sign(bench: Bench) -> AbstractContextManager[None]:
    """The probability of no."""
    return attribute(model, "scores_of", lambda logits: scores_of(logits[:, ::-1]))


def yes_and_no_exchanged(weights: Weights, facts: Facts) -> None:
    rows = weights("score.weight")
    rows[:] = rows[::-1].copy()
