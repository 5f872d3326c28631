"""The key-value cache of the tokens so far.

Two forms, because the two kinds of decoder graph store their cache differently; `decoder.decode` takes either:

    SharedCache   for `GroupQueryAttention` (target ort): one buffer per layer for keys and one for values, which the
                  graph reads and writes in place. A row's tokens are at its start, without padding.
    JoinedCache   for graphs of standard ops (target portable): each call returns new, longer arrays, padded where the
                  attention mask is 0.

Knows memory; nothing about what keys and values mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contract import DECODER, Facts, past_name, present_name
from ..errors import InputError
from .arrays import Floats, Ints
from .session import Sessions

BLOCK = 256  # buffers hold a multiple of this many tokens
GROWTH = 1.5  # a full buffer grows by this factor, so that all copies together are O(tokens)


def layer_parts(facts: Facts) -> list[tuple[int, str]]:
    """(layer, "key" or "value") of every array of a cache, in the order of the graph's inputs."""
    return [(layer, part) for layer in range(facts.num_hidden_layers) for part in ("key", "value")]


class SharedCache:
    """One buffer [B, K, capacity, E] for each layer's keys and for its values, bound as both past and present.

    Attributes:
        length: columns of the attention mask whose tokens are cached, padding included.

    Args:
        buffers: in the order of `layer_parts`, of the dtype the decoder takes.
    """

    def __init__(self, sessions: Sessions, buffers: Sequence[Floats]) -> None:
        self.sessions = sessions
        self.buffers = list(buffers)
        self.length = 0
        self.binding: Any = sessions.open(DECODER).io_binding()
        self._bound = 0  # the capacity of the buffers that are bound
        self._bind()

    @classmethod
    def allocate(cls, sessions: Sessions, batch: int, capacity: int = BLOCK) -> SharedCache:
        """An empty cache with room for `capacity` tokens; pages of a buffer take no memory until they are written."""
        facts = sessions.facts
        capacity = round_up_capacity(capacity, facts.max_position_embeddings)
        shape = (batch, facts.num_key_value_heads, capacity, facts.head_dim)
        dtype = sessions.dtypes(DECODER)[past_name(0, "key")]
        return cls(sessions, [np.zeros(shape, dtype) for _ in layer_parts(facts)])

    @property
    def capacity(self) -> int:
        return max(int(buffer.shape[2]) for buffer in self.buffers)  # smaller ones were not reached by an interrupt

    def _bind(self) -> None:
        for (layer, part), buffer in zip(layer_parts(self.sessions.facts), self.buffers, strict=True):
            memory = ("cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self.binding.bind_input(past_name(layer, part), *memory)
            self.binding.bind_output(present_name(layer, part), *memory)
        self._bound = self.capacity

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens; grows geometrically, one buffer at a time. If interrupted, the next call
        completes it.

        Raises:
            InputError: `length` exceeds the model's context.
        """
        limit = self.sessions.facts.max_position_embeddings
        if length > limit:
            raise InputError(
                f"{length} tokens, the context holds {limit}: {length - limit} over",
                "Shorten the text, or use fewer or smaller pictures",
            )
        capacity = self.capacity
        if length > capacity:
            capacity = round_up_capacity(max(length, int(capacity * GROWTH)), limit)
        if capacity == self._bound:
            return
        for index, old in enumerate(self.buffers):
            if old.shape[2] == capacity:
                continue
            new = np.zeros((*old.shape[:2], capacity, old.shape[3]), old.dtype)
            new[:, :, : self.length] = old[:, :, : self.length]
            self.buffers[index] = new
        self._bind()

    def row(self, index: int) -> SharedCache:
        """An empty cache for one row of the batch, whose buffers are views of these, so it must not grow."""
        return SharedCache(self.sessions, [buffer[index : index + 1] for buffer in self.buffers])

    def truncate(self, length: int) -> None:
        """Forget all tokens of a single row after the first `length`."""
        self.length = min(self.length, length)

    def parts(self, mask: Ints) -> list[Floats]:
        """For each array of `layer_parts`, the entries of every row's tokens without padding: [tokens, K, E].

        Args:
            mask: int64 [B, length], 0 on padding.
        """
        counts = mask.sum(axis=1)
        return [
            np.concatenate([rows[:, :count].transpose(1, 0, 2) for rows, count in zip(buffer, counts, strict=True)])
            for buffer in self.buffers
        ]


class JoinedCache:
    """Arrays [B, K, length, E] that every call of the decoder replaces with longer ones."""

    def __init__(self, sessions: Sessions, batch: int) -> None:
        facts = sessions.facts
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


def round_up_capacity(length: int, limit: int) -> int:
    """`length` rounded up to whole blocks, at most `limit`."""
    return max(1, min(-(-length // BLOCK) * BLOCK, limit))
