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
from .decoder import Cache, decode, embed, embed_generated, empty_cache
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
    sessions: Sessions, prepared: Prepared, image_features: Floats, chunk: int | None = PREFILL_CHUNK
) -> tuple[Floats, Cache]:
    """Logits [B, V] of each row's last token, and the cache of the prompt.

    A batch that takes more than one chunk goes row after row, because `GroupQueryAttention` continues a cache by
    several tokens only for a single row. Padding is left out then: its place in the cache is zero, and masked as ever.

    Args:
        image_features: [T, W], of all pictures in the order of their tokens.
        chunk: tokens per call; None puts the whole prompt through in one.
    """
    batch, length = prepared.input_ids.shape
    if chunk is not None and chunk < 1:
        raise InputError(f"prefill_chunk is {chunk}", "At least 1 works; None is the whole prompt at once")
    chunk = length if chunk is None else chunk
    visual = visual_tokens(prepared.input_ids, sessions.facts)
    if int(visual.sum()) != len(image_features):
        raise InputError(
            f"the prompt has {int(visual.sum())} image tokens, there are {len(image_features)} features",
            "Encode the pictures of this prompt",
        )
    ids, mask, positions = prepared.input_ids, prepared.attention_mask, prepared.position_ids
    if batch == 1 or length <= chunk:
        return prefill_rows(sessions, ids, mask, positions, image_features, chunk)
    logits, caches = [], []
    bounds = np.cumsum([0, *visual.sum(axis=1)])
    for row in range(batch):
        kept = slice(length - int(mask[row].sum()), length)
        features = image_features[bounds[row] : bounds[row + 1]]
        here = (slice(row, row + 1), kept)
        of_row, cache = prefill_rows(sessions, ids[here], mask[here], positions[:, *here], features, chunk)
        logits.append(of_row)
        caches.append([np.pad(part, ((0, 0), (0, 0), (kept.start, 0), (0, 0))) for part in cache])
    return np.concatenate(logits), tuple(np.concatenate(parts) for parts in zip(*caches, strict=True))


def prefill_rows(
    sessions: Sessions, ids: Ints, mask: Ints, positions: Ints, image_features: Floats, chunk: int
) -> tuple[Floats, Cache]:
    """`prefill` of rows [B, S] together, `chunk` tokens at a time; only a chunk's wide rows are in memory at once."""
    length = ids.shape[1]
    visual = visual_tokens(ids, sessions.facts)
    feature_row = visual.cumsum().reshape(visual.shape) - 1  # features are counted on from one row to the next
    cache = empty_cache(sessions, len(ids))
    for start in range(0, length, chunk):
        here = slice(start, min(start + chunk, length))
        features = image_features[feature_row[:, here][visual[:, here]]]
        inputs_embeds = embed(sessions, ids[:, here], features)
        logits, cache = decode(
            sessions, inputs_embeds, mask[:, : here.stop], positions[:, :, here], cache, num_logits_to_keep=1
        )
    return logits[:, -1], cache


def generate(
    sessions: Sessions,
    prepared: Prepared,
    image_features: Floats,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    prefill_chunk: int | None = PREFILL_CHUNK,
) -> Iterator[Step]:
    """Tokens of all rows until every row has produced one of `stop_ids` or the context is full.

    A row that has ended goes on being computed with its stop token, and is not `alive` from the step after. The stop
    token itself is among the tokens.

    Args:
        stop_ids: may be empty; then every row gets all `max_new_tokens`.

    Raises:
        InputError: fewer than one new token was asked for.
        ArtifactError: logits that are not numbers.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}", "At least 1 works")
    batch, length = prepared.input_ids.shape
    room = sessions.facts.max_position_embeddings - length + 1  # the last token is never fed back
    chooser = Chooser(sampling, batch)
    seen = [ids[mask == 1] for ids, mask in zip(prepared.input_ids, prepared.attention_mask, strict=True)]
    lengths = prepared.attention_mask.sum(axis=1, keepdims=True)
    mask = prepared.attention_mask
    alive, tokens = np.ones(batch, np.bool_), np.zeros(batch, np.int64)
    logits, cache = prefill(sessions, prepared, image_features, prefill_chunk)
    steps = min(max_new_tokens, room)
    for step in range(steps):
        tokens = np.where(alive, chooser(logits, seen, step), tokens)
        yield Step(tokens, logits, alive)
        alive = alive & ~np.isin(tokens, list(stop_ids))
        if not alive.any() or step + 1 == steps:
            return
        seen = [np.append(ids, token) for ids, token in zip(seen, tokens, strict=True)]
        inputs_embeds = embed_generated(sessions, tokens)
        mask = np.concatenate((mask, np.ones((batch, 1), np.int64)), axis=1)
        positions = next_positions(prepared.rope_deltas, lengths + step)
        all_logits, cache = decode(sessions, inputs_embeds, mask, positions, cache, num_logits_to_keep=1)
        logits = all_logits[:, -1]
