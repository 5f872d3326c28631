"""Mistakes of a runtime: context managers inside which one thing is wrong, while every file of the artifact is right.

They hook the calls of a graph (`hooks.py`) or replace a function of the runtime. Knows how to break things; not whether
anybody notices.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image

from qwen3vl_export.contract import (
    DECODER,
    EMBEDDINGS,
    IMAGE_FEATURES,
    IMAGE_GRID_THW,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    PIXEL_VALUES,
    VISION_ENCODER,
    Facts,
)
from qwen3vl_export.runtime import decoder, generate, positions
from qwen3vl_export.runtime.arrays import Ints
from qwen3vl_export.runtime.cache import Cache, SharedCache
from qwen3vl_export.runtime.pictures import images, preprocess
from qwen3vl_export.runtime.prompts import prompt

from ..harness.diagnosis.suspects import attribute, raster_order
from ..harness.sides.bench import Bench
from ..harness.sides.hooks import Arrays, hook_graph

Mistake = Callable[[Bench], AbstractContextManager[None]]

# Functions of the runtime, replaced.


def resize_bilinear(bench: Bench) -> AbstractContextManager[None]:
    def resized(image: PIL.Image.Image, grid: tuple[int, int], facts: Facts) -> Any:
        size = (grid[1] * facts.patch_size, grid[0] * facts.patch_size)
        return np.asarray(image.resize(size, PIL.Image.Resampling.BILINEAR))

    return attribute(preprocess, "resize_to_grid", resized)


def channels_reversed(bench: Bench) -> AbstractContextManager[None]:
    resized = preprocess.resize_to_grid
    return attribute(preprocess, "resize_to_grid", lambda *args: resized(*args)[:, :, ::-1])


def alpha_dropped(bench: Bench) -> AbstractContextManager[None]:
    """The transparency of a picture in memory is dropped."""
    return attribute(images, "composite_over_white", lambda image: image.convert("RGB"))


def one_image_token_more(bench: Bench) -> AbstractContextManager[None]:
    image_text = prompt.image_text
    return attribute(prompt, "image_text", lambda token, tokens: image_text(token, tokens + 1))


def pictures_counted_as_text(bench: Bench) -> AbstractContextManager[None]:
    """Every token one position after the last, on all three axes."""

    def rope_index(input_ids: Ints, attention_mask: Ints, grid_thw: Ints, facts: Facts) -> tuple[Ints, Ints]:
        counted = (attention_mask.cumsum(1) - 1) * attention_mask
        return np.stack([counted] * 3), np.zeros((len(input_ids), 1), np.int64)

    return attribute(positions, "rope_index", rope_index)


def positions_from_token_count(bench: Bench) -> AbstractContextManager[None]:
    """Generated tokens continue at the number of tokens and not at the largest position."""
    next_positions = positions.next_positions
    return attribute(generate, "next_positions", lambda deltas, *rest: next_positions(deltas * 0, *rest))


# Calls of a graph, hooked.


def merge_blocks_ignored(bench: Bench) -> AbstractContextManager[None]:
    """Patches in raster order, where the tower takes them in 2x2 blocks."""

    def before(feeds: Arrays) -> Arrays:
        order = raster_order(feeds[IMAGE_GRID_THW], bench.artifact.manifest.facts.spatial_merge_size)
        return {**feeds, PIXEL_VALUES: feeds[PIXEL_VALUES][order]}

    return hook_graph(bench, VISION_ENCODER, before=before)


def one_token_of_another(bench: Bench) -> AbstractContextManager[None]:
    """One token has the features of another; a mean over all tokens hardly moves."""

    def after(feeds: Arrays, outputs: Arrays) -> Arrays:
        features = outputs[IMAGE_FEATURES].copy()
        features[0] = features[-1]
        return {**outputs, IMAGE_FEATURES: features}

    return hook_graph(bench, VISION_ENCODER, after=after)


def features_exchanged(bench: Bench) -> AbstractContextManager[None]:
    """The features of the first two pictures are exchanged."""

    def before(feeds: Arrays) -> Arrays:
        bounds = np.cumsum([0, *picture_lengths(bench, feeds[INPUT_IDS])])
        parts = [feeds[IMAGE_FEATURES][first:last] for first, last in pairwise(bounds)]
        rows = np.concatenate([*parts[1:2], *parts[:1], *parts[2:]]) if parts else feeds[IMAGE_FEATURES]
        return {**feeds, IMAGE_FEATURES: rows}

    return hook_graph(bench, EMBEDDINGS, before=before)


def features_counted_by_row(bench: Bench) -> AbstractContextManager[None]:
    """Every row of a batch starts at the first feature."""

    def before(feeds: Arrays) -> Arrays:
        counts = [int(row.sum()) for row in visual_mask(bench, feeds[INPUT_IDS])]
        indices = np.concatenate([np.arange(count) for count in counts]).astype(np.int64)
        return {**feeds, IMAGE_FEATURES: feeds[IMAGE_FEATURES][indices]}

    return hook_graph(bench, EMBEDDINGS, before=before)


def video_not_scattered(bench: Bench) -> AbstractContextManager[None]:
    """The features of videos never reach their tokens."""

    def after(feeds: Arrays, outputs: Arrays) -> Arrays:
        rows = outputs[INPUTS_EMBEDS].copy()
        rows[feeds[INPUT_IDS] == bench.artifact.manifest.facts.video_token_id] = 0
        return {**outputs, INPUTS_EMBEDS: rows}

    return hook_graph(bench, EMBEDDINGS, after=after)


def cache_off_by_one(bench: Bench) -> AbstractContextManager[None]:
    """Every key and value is one slot late."""
    decode = decoder.decode

    def decode_late(sessions: Any, embeds: Any, mask: Any, position_ids: Any, cache: Cache, *rest: Any) -> Any:
        for array in cache.buffers if isinstance(cache, SharedCache) else cache.arrays:
            used = array[:, :, : cache.length]
            used[:] = np.roll(used, 1, axis=2)
        return decode(sessions, embeds, mask, position_ids, cache, *rest)

    return attribute(generate, "decode", decode_late)


def one_nan(bench: Bench) -> AbstractContextManager[None]:
    def after(feeds: Arrays, outputs: Arrays) -> Arrays:
        logits = outputs[LOGITS].copy()
        logits[..., -1, 0] = np.nan
        return {**outputs, LOGITS: logits}

    return hook_graph(bench, DECODER, after=after)


def visual_mask(bench: Bench, ids: Ints) -> Any:
    """bool [B, S]: which ids are placeholders of features."""
    return positions.visual_tokens(ids, bench.artifact.manifest.facts)


def picture_lengths(bench: Bench, ids: Ints) -> list[int]:
    """Tokens of each picture or frame, in order."""
    facts = bench.artifact.manifest.facts
    return [length for row in ids for token, length in positions.token_runs(row, facts) if token is not None]
