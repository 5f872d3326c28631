"""Single calls of the embeddings and decoder graphs.

Knows the graphs' inputs and outputs; nothing about prompts, sampling or when to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import (
    ATTENTION_MASK,
    DECODER,
    EMBED_TOKENS,
    EMBEDDINGS,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    NUM_LOGITS_TO_KEEP,
    POSITION_IDS,
    decoder_output,
    past_name,
    present_name,
)
from ..errors import InputError
from .arrays import Floats, Ints
from .cache import Cache, JoinedCache, SharedCache, layer_parts
from .positions import visual_tokens
from .session import Sessions


def embed(sessions: Sessions, input_ids: Ints, image_features: Floats) -> Floats:
    """Wide rows [B, S, W] for token ids int64 [B, S], with the features [T, W] in place of image and video tokens.

    Raises:
        InputError: the number of image and video tokens is not T.
    """
    tokens = int(visual_tokens(input_ids, sessions.facts).sum())
    if tokens != len(image_features):
        raise InputError(
            f"{INPUT_IDS} has {tokens} image and video tokens, {IMAGE_FEATURES} has {len(image_features)} rows",
            "Pass the features of the prompt's pictures, all of them and no others",
        )
    feeds = {INPUT_IDS: input_ids, IMAGE_FEATURES: image_features}
    rows: Floats = sessions.run(EMBEDDINGS, feeds, [INPUTS_EMBEDS])[0]
    return rows


def embed_generated(sessions: Sessions, tokens: Ints) -> Floats:
    """Wide rows [B, N, W] for tokens int64 [B, N] that the model generated.

    A generated image or video token is text, as in transformers: no features belong to it. The graph for that case is
    opened only when it occurs.
    """
    if not visual_tokens(tokens, sessions.facts).any():
        return embed(sessions, tokens, no_features(sessions))
    rows: Floats = sessions.run(EMBED_TOKENS, {INPUT_IDS: tokens}, [INPUTS_EMBEDS])[0]
    return rows


def no_features(sessions: Sessions) -> Floats:
    """Zero rows of image features [0, W], in the dtype the embeddings graph takes."""
    return np.zeros((0, sessions.facts.wide_size), sessions.dtypes(EMBEDDINGS)[IMAGE_FEATURES])


def empty_cache(sessions: Sessions, batch: int, capacity: int = 0) -> Cache:
    """The cache before the first token, in the form the decoder graph takes.

    Args:
        capacity: number of tokens to allocate room for; the cache grows beyond it when needed.
    """
    if sessions.shares_cache and sessions.memory is not None:
        return SharedCache.allocate(sessions, batch, capacity)
    return JoinedCache(sessions, batch)


def decode(
    sessions: Sessions,
    inputs_embeds: Floats,
    attention_mask: Ints,
    position_ids: Ints,
    cache: Cache,
    num_logits_to_keep: int = 0,
) -> Floats:
    """What the head makes of the last N new tokens: logits [B, N, V], of an embedding model hidden states [B, N, H], of
    a reranker logits [B, N, 2]. The keys and values of all S new tokens are appended to `cache`.

    Args:
        inputs_embeds: [B, S, W].
        attention_mask: int64 [B, cache.length + S], 0 on padding.
        position_ids: int64 [3, B, S].
        cache: of the tokens before; S > 1 continues a `SharedCache` only for a batch of one.
        num_logits_to_keep: N; 0 means S.

    Raises:
        InputError: a mask of another length, or more tokens than the context holds.
    """
    batch, new = inputs_embeds.shape[:2]
    if attention_mask.shape != (batch, cache.length + new):
        raise InputError(
            f"{ATTENTION_MASK} has shape {list(attention_mask.shape)} for {new} tokens after {cache.length}",
            f"Expected {[batch, cache.length + new]}",
        )
    feeds: dict[str, NDArray[Any]] = {
        INPUTS_EMBEDS: inputs_embeds,
        ATTENTION_MASK: attention_mask,
        POSITION_IDS: position_ids,
    }
    if NUM_LOGITS_TO_KEEP in sessions.dtypes(DECODER):
        feeds[NUM_LOGITS_TO_KEEP] = np.array(num_logits_to_keep, np.int64)
        rows = min(num_logits_to_keep, new) or new
    else:
        rows = new
    if isinstance(cache, SharedCache):
        logits = decode_shared(sessions, feeds, cache, rows)
    else:
        logits = decode_joined(sessions, feeds, cache)
    return logits[:, -num_logits_to_keep:]


def decode_shared(sessions: Sessions, feeds: Mapping[str, NDArray[Any]], cache: SharedCache, rows: int) -> Floats:
    """One call that reads and writes the cache's buffers in place; the cache is never copied."""
    batch, length = feeds[ATTENTION_MASK].shape
    cache.reserve(length)
    output = decoder_output(sessions.facts)
    dtype = sessions.dtypes(DECODER)[INPUTS_EMBEDS] if output.dtype == "float" else np.dtype(output.dtype)
    logits: Floats = np.empty((batch, rows, int(output.shape[-1])), dtype)
    sessions.run_bound(DECODER, cache.binding, feeds, {output.name: logits})
    cache.length = length
    return logits


def decode_joined(sessions: Sessions, feeds: Mapping[str, NDArray[Any]], cache: JoinedCache) -> Floats:
    """One call that takes the cache's arrays and returns longer ones."""
    parts = layer_parts(sessions.facts)
    past = {past_name(*part): array for part, array in zip(parts, cache.arrays, strict=True)}
    logits: Floats
    outputs = [decoder_output(sessions.facts).name, *(present_name(*part) for part in parts)]
    logits, *cache.arrays = sessions.run(DECODER, {**feeds, **past}, outputs)
    return logits
