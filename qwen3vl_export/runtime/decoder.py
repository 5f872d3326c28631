"""One call each of the embeddings and decoder graphs, and the cache between calls.

A cache is a tuple of arrays [B, kv heads, tokens so far, head_dim]: key and value of layer 0, of layer 1, and so on.

Knows the graphs' inputs and outputs; nothing about prompts, sampling or when to stop.
"""

from __future__ import annotations

import numpy as np

from ..contract import (
    ATTENTION_MASK,
    DECODER,
    EMBED_TOKENS,
    EMBEDDINGS,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    NUM_LOGITS_TO_KEEP,
    POSITION_IDS,
    Facts,
    past_name,
    present_name,
)
from ..errors import InputError
from .arrays import Floats, Ints
from .positions import visual_tokens
from .session import Sessions

Cache = tuple[Floats, ...]


def embed(sessions: Sessions, input_ids: Ints, image_features: Floats) -> Floats:
    """Wide rows [B, S, W] for token ids int64 [B, S], the features [T, W] in place of image and video tokens.

    Raises:
        InputError: there are not T image and video tokens.
    """
    tokens = int(visual_tokens(input_ids, sessions.facts).sum())
    if tokens != len(image_features):
        raise InputError(
            f"{INPUT_IDS} has {tokens} image and video tokens, {IMAGE_FEATURES} has {len(image_features)} rows",
            "Pass the features of exactly these pictures",
        )
    feeds = {INPUT_IDS: input_ids, IMAGE_FEATURES: image_features}
    rows: Floats = sessions.run(EMBEDDINGS, feeds, [INPUTS_EMBEDS])[0]
    return rows


def embed_generated(sessions: Sessions, tokens: Ints) -> Floats:
    """Wide rows [B, 1, W] for tokens int64 [B] the model produced itself.

    Should it ever produce an image or video token, that is text as in transformers: no features belong to it. The graph
    for that case is opened only then.
    """
    input_ids = tokens[:, None]
    if not visual_tokens(input_ids, sessions.facts).any():
        return embed(sessions, input_ids, no_features(sessions))
    rows: Floats = sessions.run(EMBED_TOKENS, {INPUT_IDS: input_ids}, [INPUTS_EMBEDS])[0]
    return rows


def no_features(sessions: Sessions) -> Floats:
    """Zero rows of image features [0, W], in the dtype the embeddings graph takes."""
    return np.zeros((0, sessions.facts.wide_size), sessions.dtypes(EMBEDDINGS)[IMAGE_FEATURES])


def empty_cache(sessions: Sessions, batch: int) -> Cache:
    """The cache before the first token."""
    facts = sessions.facts
    dtype = sessions.dtypes(DECODER)[past_name(0, "key")]
    shape = (batch, facts.num_key_value_heads, 0, facts.head_dim)
    return tuple(np.zeros(shape, dtype) for _ in layer_parts(facts))


def layer_parts(facts: Facts) -> list[tuple[int, str]]:
    return [(layer, part) for layer in range(facts.num_hidden_layers) for part in ("key", "value")]


def decode(
    sessions: Sessions,
    inputs_embeds: Floats,
    attention_mask: Ints,
    position_ids: Ints,
    past: Cache,
    num_logits_to_keep: int = 0,
) -> tuple[Floats, Cache]:
    """Logits and the longer cache.

    Args:
        inputs_embeds: [B, S, W].
        attention_mask: int64 [B, past + S], 0 on padding.
        position_ids: int64 [3, B, S].
        past: the cache of the tokens before.
        num_logits_to_keep: how many of the last tokens get logits; 0 is all.

    Returns:
        logits [B, kept, V] and the cache of past + S tokens.
    """
    feeds = {INPUTS_EMBEDS: inputs_embeds, ATTENTION_MASK: attention_mask, POSITION_IDS: position_ids}
    parts = layer_parts(sessions.facts)
    feeds |= {past_name(*part): array for part, array in zip(parts, past, strict=True)}
    if NUM_LOGITS_TO_KEEP in sessions.dtypes(DECODER):
        feeds[NUM_LOGITS_TO_KEEP] = np.array(num_logits_to_keep, np.int64)
    logits, *present = sessions.run(DECODER, feeds, [LOGITS, *(present_name(*part) for part in parts)])
    if num_logits_to_keep:
        logits = logits[:, -num_logits_to_keep:]
    return logits, tuple(present)
