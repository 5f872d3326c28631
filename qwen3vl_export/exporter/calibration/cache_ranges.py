"""How large keys and values become: the scales of a cache in 8 bits, one for each channel of a head.

Each attention of transformers hands its rotated keys and its values to its cache, whose place `CacheRanges` takes while
prompts run through the layers. Rotation turns the channels i and i + E/2 into each other, by an angle that depends on
the position, so the two share the length of the pair: no position exceeds it.

Keys leave an RMSNorm. Their pair is therefore never longer than sqrt(E) times the larger of its two weights, whatever
the prompt. Values have no such bound; other prompts may go further than those of the calibration, by `HEADROOM`.

Knows transformers' attention; nothing about graphs.

Legend: K key heads, S tokens, E head size.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HEADROOM = 2.0  # times what the prompts reach
LARGEST_INTEGER = 127
LEAST_PART = 1 / 256  # of its head's largest range: that of a channel which no prompt uses

Scales = tuple[NDArray[np.float32], NDArray[np.float32]]  # of keys and of values, [1, K, 1, E]


class CacheRanges:
    """The largest keys and values of each layer; stands in for transformers' cache and keeps nothing else."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}  # layer -> [K, E / 2]
        self._values: dict[int, Tensor] = {}  # layer -> [K, E]
        self._bounds: dict[int, Tensor] = defaultdict(lambda: torch.tensor(torch.inf))  # layer -> [E / 2]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Measure and return [1, K, S, E] of each, as `transformers.Cache.update` returns what attention reads."""
        for largest, measured in (
            (self._keys, torch.hypot(*keys.chunk(2, dim=-1))),
            (self._values, values.abs()),
        ):
            reached = measured.to(torch.float32).amax(dim=(0, 2))
            largest[layer] = torch.maximum(largest[layer], reached) if layer in largest else reached
        return keys, values

    def bound_keys(self, layer: int, norm: Tensor) -> None:
        """Take the weights [E] of the norm that a layer's keys leave."""
        pairs = torch.maximum(*norm.detach().abs().to(torch.float32).chunk(2))
        self._bounds[layer] = pairs * len(norm) ** 0.5

    @property
    def scales(self) -> list[Scales]:
        """What one step of an integer is worth, float32, of every layer."""
        scales = []
        for layer in sorted(self._keys):
            pairs = torch.minimum(HEADROOM * self._keys[layer], self._bounds[layer])
            scales.append((_scale(torch.cat([pairs, pairs], dim=-1)), _scale(HEADROOM * self._values[layer])))
        return scales


def _scale(ranges: Tensor) -> NDArray[np.float32]:
    """Ranges [K, E] to scales [1, K, 1, E]."""
    least = ranges.amax(dim=-1, keepdim=True) * LEAST_PART
    scale: NDArray[np.float32] = (torch.maximum(ranges, least) / LARGEST_INTEGER)[None, :, None].numpy()
    return scale
