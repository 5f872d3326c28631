"""The keys and values of the tokens so far, in memory that does not move.

Two forms, because the two kinds of decoder graph keep their cache differently; `decoder.decode` uses either alike:

    SharedCache   for `GroupQueryAttention` (target ort): one buffer per layer and part that the graph reads and
                  writes in place. A row's tokens lie at its start, without padding.
    JoinedCache   for graphs of standard ops (target portable): each call returns new, longer arrays, and padding
                  lies where the attention mask says it is.

Knows memory; nothing about what keys and values mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..contract import DECODER, Facts, past_name, present_name
from ..errors import InputError
from .arrays import Floats, Ints
from .session import Sessions

BLOCK = 256  # buffers hold a multiple of this many tokens
GROWTH = 1.5  # a buffer that is full becomes this many times larger, so that its copies add up to O(tokens)


def layer_parts(facts: Facts) -> list[tuple[int, str]]:
    return [(layer, part) for layer in range(facts.num_hidden_layers) for part in ("key", "value")]


class SharedCache:
    """One buffer [B, K, capacity, E] for each layer's keys and values, bound as both past and present.

    Fresh pages of a buffer cost no memory until they are written.

    Args:
        length: columns of the attention mask the cache stands for, padding included.
    """

    def __init__(self, sessions: Sessions, batch: int, capacity: int = BLOCK) -> None:
        self.sessions = sessions
        self.batch = batch
        self.length = 0
        self.binding: Any = sessions.open(DECODER).io_binding()
        dtype = sessions.dtypes(DECODER)[past_name(0, "key")]
        facts = sessions.facts
        shape = (batch, facts.num_key_value_heads, blocks(capacity, facts.max_position_embeddings), facts.head_dim)
        self.buffers: list[Floats] = [np.zeros(shape, dtype) for _ in layer_parts(facts)]
        self._bind()

    @property
    def capacity(self) -> int:
        return int(self.buffers[0].shape[2])

    def _bind(self) -> None:
        for (layer, part), buffer in zip(layer_parts(self.sessions.facts), self.buffers, strict=True):
            place = ("cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self.binding.bind_input(past_name(layer, part), *place)
            self.binding.bind_output(present_name(layer, part), *place)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens; grows geometrically, one buffer at a time.

        Raises:
            InputError: more tokens than the context holds.
        """
        limit = self.sessions.facts.max_position_embeddings
        if length > limit:
            raise InputError(
                f"{length} tokens, the context holds {limit}: {length - limit} over",
                "Shorten the text, or use fewer or smaller pictures",
            )
        if length <= self.capacity:
            return
        capacity = blocks(max(length, int(self.capacity * GROWTH)), limit)
        for index, old in enumerate(self.buffers):
            new = np.zeros((*old.shape[:2], capacity, old.shape[3]), old.dtype)
            new[:, :, : self.length] = old[:, :, : self.length]
            self.buffers[index] = new
        self._bind()

    def row(self, index: int) -> SharedCache:
        """One row of the batch: a cache of its own whose buffers are views into these, so it must not grow."""
        view = object.__new__(SharedCache)
        view.sessions, view.batch, view.length = self.sessions, 1, 0
        view.binding = self.sessions.open(DECODER).io_binding()
        view.buffers = [buffer[index : index + 1] for buffer in self.buffers]
        view._bind()
        return view

    def truncate(self, length: int) -> None:
        """Forget all tokens of a single row after the first `length`."""
        self.length = min(self.length, length)

    def parts(self, mask: Ints) -> list[Floats]:
        """For each layer's keys and values, those of every token of every row: [tokens, K, E].

        Args:
            mask: int64 [B, length], 0 on padding.
        """
        counts = mask.sum(axis=1)
        return [
            np.concatenate([rows[:, :count].transpose(1, 0, 2) for rows, count in zip(buffer, counts, strict=True)])
            for buffer in self.buffers
        ]


class JoinedCache:
    """Arrays [B, K, length, E] that every call replaces by longer ones."""

    def __init__(self, sessions: Sessions, batch: int) -> None:
        facts = sessions.facts
        self.batch = batch
        dtype = sessions.dtypes(DECODER)[past_name(0, "key")]
        shape = (batch, facts.num_key_value_heads, 0, facts.head_dim)
        self.arrays: list[Floats] = [np.zeros(shape, dtype) for _ in layer_parts(facts)]

    @property
    def length(self) -> int:
        return int(self.arrays[0].shape[2])

    def truncate(self, length: int) -> None:
        """Forget all tokens of a single row after the first `length`."""
        self.arrays = [array[:, :, :length] for array in self.arrays]

    def parts(self, mask: Ints) -> list[Floats]:
        """As `SharedCache.parts`."""
        return [array.transpose(0, 2, 1, 3)[mask.astype(bool)] for array in self.arrays]


Cache = SharedCache | JoinedCache


def blocks(length: int, limit: int) -> int:
    """`length` rounded up to whole blocks, at most `limit`."""
    return max(1, min(-(-length // BLOCK) * BLOCK, limit))
