"""Reuse of what a model has already read: the cache of the last prompt and answer, and features of pictures.

A second question about a picture repeats the first one's tokens, so only what follows the longest common prefix has to
be read. A prefix is common if its token ids are equal and its pictures are, by sha256 of their patches; it never ends
inside a picture. Positions are computed from the whole prompt as always: only the starting point changes.

Knows prompts as arrays; runs no graph.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from ..contract import Facts
from .arrays import Floats, Ints
from .cache import Cache
from .positions import token_runs
from .prepare import Prepared

FEATURE_BYTES = 256 * 2**20  # of cached features; a photograph of 1024x1024 takes 32 MB in the 2B model


@dataclass(frozen=True)
class Span:
    """One image or video of a prompt: its tokens [start, end), timestamps of a video included."""

    start: int
    end: int
    digest: bytes  # sha256 of its patches and grid


def picture_digests(prepared: Prepared) -> list[bytes]:
    """sha256 of each picture's patches and grid, in the order of `image_grid_thw`."""
    digests, start = [], 0
    for grid in prepared.image_grid_thw:
        patches = prepared.pixel_values[start : start + int(grid.prod())]
        start += len(patches)
        digests.append(hashlib.sha256(grid.tobytes() + np.ascontiguousarray(patches).data).digest())
    return digests


def picture_spans(prepared: Prepared, digests: list[bytes], facts: Facts) -> tuple[Span, ...]:
    """The token spans of a single prompt's pictures; a video has one run of tokens for each frame."""
    bounds, position = [], 0
    for token_id, length in token_runs(prepared.input_ids[0], facts):
        if token_id is not None:
            bounds.append((position, position + length))
        position += length
    spans, used = [], 0
    for (frames, _, _), digest in zip(prepared.image_grid_thw.tolist(), digests, strict=True):
        spans.append(Span(bounds[used][0], bounds[used + frames - 1][1], digest))
        used += frames
    return tuple(spans)


class Conversation:
    """The cache of one conversation and the tokens in it. Starts empty; holds one prompt and answer at a time."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop everything, and its memory."""
        self._cache: Cache | None = None
        self._ids: Ints = np.zeros(0, np.int64)
        self._spans: tuple[Span, ...] = ()

    def take(self, input_ids: Ints, spans: tuple[Span, ...]) -> Cache | None:
        """The cache, truncated to its common prefix with a prompt of int64 [S] tokens; None if there is none.

        At least the prompt's last token is left to be read, because its logits are needed. The conversation is empty
        until `keep`, so that two answers in progress never write into one cache.
        """
        cache, self._cache = self._cache, None
        if cache is None:
            return None
        longest = min(len(self._ids), len(input_ids) - 1)
        unequal = np.flatnonzero(self._ids[:longest] != input_ids[:longest])
        common = int(unequal[0]) if len(unequal) else longest
        for span in sorted({*self._spans, *spans}, key=lambda span: -span.start):
            shared = span in self._spans and span in spans
            if span.start < common and not (shared and span.end <= common):
                common = span.start
        if common == 0:
            return None
        cache.truncate(common)
        return cache

    def keep(self, cache: Cache, ids: Ints, spans: tuple[Span, ...]) -> None:
        """Store a cache and the int64 tokens read into it; a picture read only in part is dropped."""
        length = min([cache.length, *(span.start for span in spans if span.end > cache.length)])
        cache.truncate(length)
        ids, spans = ids[:length], tuple(span for span in spans if span.end <= length)
        self._cache, self._ids, self._spans = cache, ids, spans  # at once: an interrupt comes before or after


class FeatureCache:
    """Features of pictures by digest; the least recently used are dropped first.

    Args:
        limit: bytes of features to hold at most.
    """

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit = limit
        self._features: OrderedDict[bytes, Floats] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(features.nbytes for features in self._features.values())

    def get(self, digest: bytes) -> Floats | None:
        """Features [tokens, W] of a picture, or None if they are not cached."""
        if digest in self._features:
            self._features.move_to_end(digest)
        return self._features.get(digest)

    def put(self, digest: bytes, features: Floats) -> None:
        """Cache features; an entry larger than the whole limit is not cached."""
        if features.nbytes > self.limit:
            return
        self._features[digest] = features
        while self.nbytes > self.limit:
            self._features.popitem(last=False)
