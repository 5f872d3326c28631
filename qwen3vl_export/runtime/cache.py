"""The key-value cache of the tokens so far.

Two forms, because the two kinds of decoder graph store their cache differently; `decoder.decode` takes either:

    SharedCache   for `GroupQueryAttention` (target ort): one buffer per layer for keys and one for values, which the
                  graph reads and writes in place, in the memory of the device that it runs on. A row's tokens are at
                  its start, without padding.
    JoinedCache   for graphs of standard ops (target portable), and where no memory can be shared: each call returns
                  new, longer arrays. Those of a portable graph are padded where the attention mask is 0.

Knows memory; nothing about what keys and values mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contract import DECODER, Facts, past_name, present_name
from ..errors import InputError
from .arrays import Floats, Ints
from .memory import Buffer, Memory
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
        buffers: in the order of `layer_parts`, of the dtype the decoder takes, in the memory of the sessions.
    """

    def __init__(self, sessions: Sessions, buffers: Sequence[Buffer]) -> None:
        self.sessions = sessions
        self.memory = memory_for(sessions)
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
        return cls(sessions, [memory_for(sessions).store(np.zeros(shape, dtype)) for _ in layer_parts(facts)])

    @property
    def capacity(self) -> int:
        return max(self.memory.shape(buffer)[2] for buffer in self.buffers)  # an interrupt may have left smaller ones

    def _bind(self) -> None:
        for (layer, part), buffer in zip(layer_parts(self.sessions.facts), self.buffers, strict=True):
            self.memory.bind(self.binding, past_name(layer, part), present_name(layer, part), buffer)
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
        for index, buffer in enumerate(self.buffers):
            if self.memory.shape(buffer)[2] == capacity:
                continue
            old = self.memory.read(buffer)
            new = np.zeros((*old.shape[:2], capacity, old.shape[3]), old.dtype)
            new[:, :, : self.length] = old[:, :, : self.length]
            self.buffers[index] = self.memory.store(new)
        self._bind()

    def row(self, index: int) -> SharedCache:
        """An empty cache for one row of the batch, with the capacity of this one, which must not grow; see `join`."""
        return SharedCache(self.sessions, [self.memory.row(buffer, index) for buffer in self.buffers])

    def join(self, rows: Sequence[SharedCache], length: int) -> None:
        """Take the tokens of every row's cache, which are `length` with their padding."""
        for index, buffers in enumerate(zip(*(row.buffers for row in rows), strict=True)):
            self.buffers[index] = self.memory.join(self.buffers[index], buffers)
        self._bind()
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget all tokens of a single row after the first `length`."""
        self.length = min(self.length, length)

    def parts(self, mask: Ints) -> list[Floats]:
        """For each array of `layer_parts`, the entries of every row's tokens without padding: [tokens, K, E].

        Args:
            mask: int64 [B, length], 0 on padding.
        """
        return [leading_tokens(self.memory.read(buffer), mask) for buffer in self.buffers]


class JoinedCache:
    """Arrays [B, K, length, E] that every call of the decoder replaces with longer ones."""

    def __init__(self, sessions: Sessions, batch: int) -> None:
        facts = sessions.facts
        dtype = sessions.dtypes(DECODER)[past_name(0, "key")]
        shape = (batch, facts.num_key_value_heads, 0, facts.head_dim)
        self.leading = sessions.shares_cache  # the tokens of a row are at its start, as in a `SharedCache`
        self.arrays: list[Floats] = [np.zeros(shape, dtype) for _ in layer_parts(facts)]

    @property
    def length(self) -> int:
        return int(self.arrays[0].shape[2])

    def truncate(self, length: int) -> None:
        """Forget all tokens of a single row after the first `length`."""
        self.arrays = [array[:, :, :length] for array in self.arrays]

    def parts(self, mask: Ints) -> list[Floats]:
        """As `SharedCache.parts`."""
        if self.leading:
            return [leading_tokens(array, mask) for array in self.arrays]
        return [array.transpose(0, 2, 1, 3)[mask.astype(bool)] for array in self.arrays]


Cache = SharedCache | JoinedCache


def leading_tokens(array: Floats, mask: Ints) -> Floats:
    """Entries [tokens, K, E] of an array [B, K, length, E] whose rows begin with their tokens; mask as for `parts`."""
    rows = zip(array, mask.sum(axis=1), strict=True)
    tokens: Floats = np.concatenate([row[:, :count].transpose(1, 0, 2) for row, count in rows])
    return tokens


def memory_for(sessions: Sessions) -> Memory:
    """The memory of a cache that is shared, which `empty_cache` makes only where there is one."""
    assert sessions.memory is not None
    return sessions.memory


def round_up_capacity(length: int, limit: int) -> int:
    """`length` rounded up to whole blocks, at most `limit`."""
    return max(1, min(-(-length // BLOCK) * BLOCK, limit))
