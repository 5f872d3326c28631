"""Buffers: memory that a thread keeps and works in again and again.

New memory for every strip of every weight would cost more time than what is done in it. Knows shapes and dtypes;
nothing about weights.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor


class Buffers(threading.local):
    """One buffer of each name in each thread; it is gone with the thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of unknown values, good until the thread asks for this name again."""
        size = prod(shape) * dtype.itemsize
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = torch.empty(size, dtype=torch.uint8)
        return self._kept[name][:size].view(dtype).view(shape)


BUFFERS = Buffers()
