"""The generation loop: the prompt through the decoder once, then one token of every row at a time.

Positions of generated tokens continue from the largest position of the prompt (the rope delta), not from its number of
tokens: a picture takes fewer positions than tokens.

Knows prompts as arrays and when to stop; nothing about text or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .arrays import Bools, Floats, Ints
from .cache import Cache, SharedCache
from .decoder import decode, embed, embed_generated, empty_cache
from .positions import next_positions, visual_tokens
from .prepare import Prepared
from .sampling import Chooser, Sampling
from .session import Sessions

PREFILL_CHUNK = (
    512  # tokens of the prompt in one call unless the caller says otherwise; bounds the memory of a long one
)


@dataclass(frozen=True)
class Step:
    """One token of each row: ids int64 [B], the logits [B, V] it was chosen from, and the rows that had not ended."""

    tokens: Ints
    logits: Floats
    alive: Bools


def prefill(
    sessions: Sessions,
    prepared: Prepared,
    image_features: Floats,
    chunk: int | None = PREFILL_CHUNK,
    cache: Cache | None = None,
) -> tuple[Floats, Cache]:
    """Logits [B, V] of each row's last token, and the cache of the prompt.

    Args:
        image_features: [T, W], of the pictures whose tokens are still to be read, in the order of their tokens.
        chunk: tokens per call; None puts the whole prompt through in one.
        cache: of the prompt's first tokens, read before; None starts at the first.
    """
    batch, length = prepared.input_ids.shape
    if chunk is not None and chunk < 1:
        raise InputError(f"prefill_chunk is {chunk}", "At least 1 works; None is the whole prompt at once")
    chunk = length if chunk is None else chunk
    cache = empty_cache(sessions, batch, length) if cache is None else cache
    visual = visual_tokens(prepared.input_ids[:, cache.length :], sessions.facts)
    if int(visual.sum()) != len(image_features):
        raise InputError(
            f"the prompt has {int(visual.sum())} image tokens, there are {len(image_features)} features",
            "Encode the pictures of this prompt",
        )
    if isinstance(cache, SharedCache) and batch > 1 and length > chunk:
        return prefill_each(sessions, prepared, image_features, chunk, cache), cache
    ids, mask, positions = prepared.input_ids, prepared.attention_mask, prepared.position_ids
    return prefill_together(sessions, ids, mask, positions, image_features, chunk, cache), cache


def prefill_each(
    sessions: Sessions, prepared: Prepared, image_features: Floats, chunk: int, cache: SharedCache
) -> Floats:
    """`prefill` row after row, because `GroupQueryAttention` continues a cache by several tokens only for a single row.

    Each row is read without its padding into its own part of the buffers, which is where it belongs.
    """
    batch, length = prepared.input_ids.shape
    cache.reserve(length)
    bounds = np.cumsum([0, *visual_tokens(prepared.input_ids, sessions.facts).sum(axis=1)])
    logits = []
    for row in range(batch):
        here = (slice(row, row + 1), slice(length - int(prepared.attention_mask[row].sum()), length))
        logits.append(
            prefill_together(
                sessions,
                prepared.input_ids[here],
                prepared.attention_mask[here],
                prepared.position_ids[:, *here],
                image_features[bounds[row] : bounds[row + 1]],
                chunk,
                cache.row(row),
            )
        )
    cache.length = length
    return np.concatenate(logits)


def prefill_together(
    sessions: Sessions, ids: Ints, mask: Ints, positions: Ints, image_features: Floats, chunk: int, cache: Cache
) -> Floats:
    """`prefill` of rows [B, S] from `cache.length` on, `chunk` tokens at a time: only their wide rows are in memory."""
    known, length = cache.length, ids.shape[1]
    visual = visual_tokens(ids, sessions.facts)
    visual[:, :known] = False
    feature_row = visual.cumsum().reshape(visual.shape) - 1  # features are counted on from one row to the next
    for start in range(known, length, chunk):
        here = slice(start, min(start + chunk, length))
        features = image_features[feature_row[:, here][visual[:, here]]]
        inputs_embeds = embed(sessions, ids[:, here], features)
        logits = decode(sessions, inputs_embeds, mask[:, : here.stop], positions[:, :, here], cache, 1)
    return logits[:, -1]


def generate(
    sessions: Sessions,
    prepared: Prepared,
    image_features: Floats,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    prefill_chunk: int | None = PREFILL_CHUNK,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """Tokens of all rows until every row has produced one of `stop_ids` or the context is full.

    A row that has ended goes on being computed with its stop token, and is not `alive` from the step after. The stop
    token itself is among the tokens.

    Args:
        stop_ids: may be empty; then every row gets all `max_new_tokens`.
        image_features, cache: as `prefill`; the cache is empty or holds the prompt's first tokens.

    Raises:
        InputError: fewer than one new token was asked for.
        ArtifactError: logits that are not numbers.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}", "At least 1 works")
    batch, length = prepared.input_ids.shape
    room = sessions.facts.max_position_embeddings - length + 1  # the last token is never fed back
    steps = min(max_new_tokens, room)
    chooser = Chooser(sampling, batch)
    seen = [ids[mask == 1] for ids, mask in zip(prepared.input_ids, prepared.attention_mask, strict=True)]
    lengths = prepared.attention_mask.sum(axis=1, keepdims=True)
    mask = np.concatenate((prepared.attention_mask, np.ones((batch, steps), np.int64)), axis=1)
    alive, tokens = np.ones(batch, np.bool_), np.zeros(batch, np.int64)
    logits, cache = prefill(sessions, prepared, image_features, prefill_chunk, cache)
    for step in range(steps):
        tokens = np.where(alive, chooser(logits, seen, step), tokens)
        yield Step(tokens, logits, alive)
        alive = alive & ~np.isin(tokens, list(stop_ids))
        if not alive.any() or step + 1 == steps:
            return
        seen = [np.append(ids, token) for ids, token in zip(seen, tokens, strict=True)]
        inputs_embeds = embed_generated(sessions, tokens)
        positions = next_positions(prepared.rope_deltas, lengths + step)
        logits = decode(sessions, inputs_embeds, mask[:, : length + step + 1], positions, cache, 1)[:, -1]
