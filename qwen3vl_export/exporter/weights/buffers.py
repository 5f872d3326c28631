"""Buffers: scratch memory that a thread allocates once and reuses.

Allocating memory for every strip of every weight would take longer than the work done in it. Knows shapes and dtypes;
nothing about weights.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor


class Buffers(threading.local):
    """Named buffers of the current thread, freed when the thread ends."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized contiguous tensor, valid until the thread asks for this name again."""
        size = prod(shape) * dtype.itemsize
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return self._buffers[name][:size].view(dtype).view(shape)


BUFFERS = Buffers()
