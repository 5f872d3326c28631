"""The generation loop: the prompt through the decoder once, then one token of every row at a time, or
several of a single row by prompt lookup.

Positions of generated tokens continue from the largest position of the prompt (the rope delta), not from its number of
tokens: a picture takes fewer positions than tokens.

Knows prompts as arrays and when to stop; nothing about text or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ArtifactError, InputError
from .arrays import Bools, Floats, Ints
from .cache import Cache, SharedCache
from .decoder import decode, embed, embed_generated, empty_cache
from .positions import next_positions, visual_tokens
from .prepare import Prepared
from .sampling import Chooser, Sampling
from .session import Sessions
from .speculation import Cost, PromptLookup

PREFILL_CHUNK = 512  # default number of prompt tokens per call; bounds the memory of a long prompt


@dataclass(frozen=True)
class Step:
    """One generated token of each row."""

    tokens: Ints  # int64 [B]
    logits: Floats  # [B, V], from which the tokens were chosen
    alive: Bools  # [B], rows that had not ended before this step


def prefill(
    sessions: Sessions,
    prepared: Prepared,
    image_features: Floats,
    chunk: int | None = PREFILL_CHUNK,
    cache: Cache | None = None,
) -> tuple[Floats, Cache]:
    """What the head makes of each row's last token, logits [B, V] or as for `decode`, and the cache of the prompt.

    Args:
        image_features: [T, W], of the pictures whose tokens are still to be read, in the order of their tokens.
        chunk: tokens per call; None reads the whole prompt in one call.
        cache: of the prompt's first tokens, if they have been read before; None starts from an empty cache.

    Raises:
        InputError: a chunk below 1, a number of features that is not the number of image and video tokens, or a prompt
            longer than the context.
    """
    batch, length = prepared.input_ids.shape
    if chunk is not None and chunk < 1:
        raise InputError(f"prefill_chunk is {chunk}", "Use at least 1, or None for the whole prompt at once")
    chunk = length if chunk is None else chunk
    cache = empty_cache(sessions, batch, length) if cache is None else cache
    visual = visual_tokens(prepared.input_ids[:, cache.length :], sessions.facts)
    if int(visual.sum()) != len(image_features):
        raise InputError(
            f"the prompt has {int(visual.sum())} image tokens, there are {len(image_features)} features",
            "Pass the features of this prompt's pictures",
        )
    if sessions.shares_cache and batch > 1 and length > chunk:
        if isinstance(cache, SharedCache):
            return prefill_rows(sessions, prepared, image_features, chunk, cache), cache
        chunk = length  # rows of arrays that every call makes anew cannot be read one by one
    ids, mask, positions = prepared.input_ids, prepared.attention_mask, prepared.position_ids
    return prefill_chunks(sessions, ids, mask, positions, image_features, chunk, cache), cache


def prefill_rows(
    sessions: Sessions, prepared: Prepared, image_features: Floats, chunk: int, cache: SharedCache
) -> Floats:
    """`prefill` row by row, because `GroupQueryAttention` appends several tokens to a cache only for a batch of one.

    Each row is read without its padding, into a cache that becomes a row of the buffers, or already is one.
    """
    batch, length = prepared.input_ids.shape
    cache.reserve(length)
    bounds = np.cumsum([0, *visual_tokens(prepared.input_ids, sessions.facts).sum(axis=1)])
    logits = []
    rows = [cache.row(row) for row in range(batch)]
    for row in range(batch):
        window = (slice(row, row + 1), slice(length - int(prepared.attention_mask[row].sum()), length))
        logits.append(
            prefill_chunks(
                sessions,
                prepared.input_ids[window],
                prepared.attention_mask[window],
                prepared.position_ids[:, *window],
                image_features[bounds[row] : bounds[row + 1]],
                chunk,
                rows[row],
            )
        )
    cache.join(rows, length)
    return np.concatenate(logits)


def prefill_chunks(
    sessions: Sessions, ids: Ints, mask: Ints, positions: Ints, image_features: Floats, chunk: int, cache: Cache
) -> Floats:
    """`prefill` of rows [B, S] from `cache.length` on, `chunk` tokens at a time, to bound the memory of wide rows."""
    cached, length = cache.length, ids.shape[1]
    visual = visual_tokens(ids, sessions.facts)
    visual[:, :cached] = False
    feature_row = visual.cumsum().reshape(visual.shape) - 1  # features are numbered through all rows
    for start in range(cached, length, chunk):
        window = slice(start, min(start + chunk, length))
        features = image_features[feature_row[:, window][visual[:, window]]]
        inputs_embeds = embed(sessions, ids[:, window], features)
        logits = decode(sessions, inputs_embeds, mask[:, : window.stop], positions[:, :, window], cache, 1)
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
    draft_cost: Cost | None = None,
) -> Iterator[Step]:
    """Tokens of all rows until every row has produced one of `stop_ids` or the context is full.

    A row that has ended is still computed, with its stop token, and is not `alive` from the next step on. The stop
    token itself is among the tokens.

    Args:
        stop_ids: if empty, every row gets all `max_new_tokens`.
        image_features, cache: as for `prefill`; the cache is empty or holds the prompt's first tokens. At each step it
            holds all tokens before this step's, and perhaps a draft of those after them.
        draft_cost: of drafts that `speculation` finds for a single row, to read several tokens in one call; None reads
            none. Tokens are chosen one by one from the same logits, but for rounding, with the same random numbers.

    Raises:
        InputError: `max_new_tokens` is below 1, rows of different lengths where the device cannot have them, or as
            `prefill`.
        ArtifactError: logits that are NaN or infinite.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}", "Use at least 1")
    batch, length = prepared.input_ids.shape
    room = sessions.facts.max_position_embeddings - length + 1  # the last token is never fed back
    steps = min(max_new_tokens, room)
    chooser = Chooser(sampling, batch)
    seen = [ids[mask == 1] for ids, mask in zip(prepared.input_ids, prepared.attention_mask, strict=True)]
    lengths = prepared.attention_mask.sum(axis=1, keepdims=True)
    if np.ptp(lengths) and not sessions.device.provider.mixes_lengths:
        raise InputError(
            f"device {sessions.device.name}: its provider decodes rows of different lengths wrongly in one batch",
            "Ask one question at a time, or use another device",
        )
    mask = np.concatenate((prepared.attention_mask, np.ones((batch, steps), np.int64)), axis=1)
    alive, tokens = np.ones(batch, np.bool_), np.zeros(batch, np.int64)
    lookup: PromptLookup | None = None
    if draft_cost is not None:
        barred = {*stop_ids, sessions.facts.image_token_id, sessions.facts.video_token_id}
        lookup = PromptLookup(seen[0].tolist(), barred, draft_cost)
    accepted = 0  # tokens that were chosen as they had been drafted, and read, in the last call
    last, cache = prefill(sessions, prepared, image_features, prefill_chunk, cache)
    logits = last[:, None]
    for step in range(steps):
        last = logits[:, accepted]
        tokens = np.where(alive, chooser(last, seen, step), tokens)
        yield Step(tokens, last, alive)
        alive = alive & ~np.isin(tokens, list(stop_ids))
        if not alive.any() or step + 1 == steps:
            return
        seen = [np.append(ids, token) for ids, token in zip(seen, tokens, strict=True)]
        if lookup is not None and lookup.push(int(tokens[0])):
            accepted += 1
            continue
        if accepted < logits.shape[1] - 1:
            cache.truncate(length + step)
        accepted, draft = 0, [] if lookup is None else lookup.draft(steps - step - 2)
        try:
            logits = read_generated(sessions, prepared, tokens, draft, lengths + step, mask, cache)
        except ArtifactError:  # activations beyond the range of float16, which may be the draft's
            if lookup is None or not draft:
                raise
            logits = read_generated(sessions, prepared, tokens, lookup.draft(0), lengths + step, mask, cache)


def read_generated(
    sessions: Sessions, prepared: Prepared, tokens: Ints, draft: list[int], lengths: Ints, mask: Ints, cache: Cache
) -> Floats:
    """Logits [B, 1 + D, V] after the latest token of each row, int64 [B], and after each of a draft of D tokens.

    Args:
        lengths: int64 [B, 1], the number of tokens of each row before these, without padding.
        mask: int64 [B, S], of which S may be longer than the row is by then.
    """
    ids = np.concatenate((tokens[:, None], np.tile(np.array(draft, np.int64), (len(tokens), 1))), axis=1)
    count = ids.shape[1]
    positions = next_positions(prepared.rope_deltas, lengths, count)
    inputs_embeds = embed_generated(sessions, ids)
    return decode(sessions, inputs_embeds, mask[:, : cache.length + count], positions, cache, count)
