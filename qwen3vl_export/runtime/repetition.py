"""Recognizes an answer that has become a loop: the same few tokens again and again, without end.

A loop cannot be told from a long repetition that is meant, such as the rows of an empty table, except by its length. So
only what no page or table has counts: a block of at most `LONGEST` tokens that occurs `REPEATS` times in a row, without
any difference, and covers at least `LEAST` tokens.

Knows token ids; nothing about text.
"""

from __future__ import annotations

import numpy as np

LONGEST = 128  # tokens of a block
REPEATS = 64  # of a block in a row
LEAST = 256  # tokens of all its repeats
LENGTHS = np.arange(1, LONGEST + 1)  # of every block that is looked for
LIMITS = np.maximum(REPEATS * LENGTHS, LEAST)


class LoopDetector:
    """Watches the tokens of one answer. Each costs one comparison with the last `LONGEST`, however long it has become.

    With q the number of latest tokens that equal the ones p places before them, the last q + p tokens are a block of
    length p, repeated.
    """

    def __init__(self) -> None:
        self._recent = np.full(LONGEST, -1, np.int64)  # the latest token first
        self._equal = np.zeros(LONGEST, np.int64)  # q, for each length p

    def push(self, token_id: int) -> bool:
        """Whether the answer is a loop, now that it ends with this token."""
        self._equal = np.where(self._recent == token_id, self._equal + 1, 0)
        self._recent = np.concatenate(([token_id], self._recent[:-1]))
        return bool((self._equal + LENGTHS >= LIMITS).any())
