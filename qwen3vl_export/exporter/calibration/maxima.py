"""How large each input channel of a model's linear layers gets with calibration prompts.

Knows torch's layers; nothing about what the numbers are for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .ranges import watch_layers


class ChannelMaxima:
    """The largest absolute value of every input channel, float32 [K], by name of the linear layer."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def watch(self, model: nn.Module, prefix: str) -> AbstractContextManager[None]:
        """Measure a model that runs inside the context; `prefix` is what the names of its layers begin with."""
        return watch_layers(model, prefix, self._measure)

    def _measure(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and inputs[0].numel():
            largest = inputs[0].abs().reshape(-1, module.in_features).amax(0)
            self.largest[name] = torch.maximum(largest, self.largest.get(name, largest))
