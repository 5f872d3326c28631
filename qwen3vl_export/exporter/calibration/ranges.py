"""How far the activations of calibration prompts go in the range that a float16 graph has for them.

The inputs and outputs of every layer with weights are measured in float32: residual streams enter norms, hidden values
of MLPs leave and enter linear layers. Knows transformers' names of layers and what `submodules/half_range.py` makes of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ..submodules.half_range import HEADROOM

LARGEST = torch.finfo(torch.float16).max
MAKE_HIDDEN = ("gate_proj", "up_proj", "linear_fc1")  # layers whose outputs may be `HEADROOM` times as large
READ_HIDDEN = ("down_proj", "linear_fc2")  # and those whose inputs may
WARNED_PART = 0.5  # of a range: other prompts may go further than those of the calibration

Watch = Callable[[nn.Module, str], AbstractContextManager[None]]
Measure = Callable[[str, nn.Module, tuple[Tensor, ...], Tensor], None]


def ignore(model: nn.Module, prefix: str) -> AbstractContextManager[None]:
    """A `Watch` that measures nothing."""
    return nullcontext()


@contextmanager
def watch_layers(model: nn.Module, prefix: str, measure: Measure) -> Iterator[None]:
    """Call `measure` with every layer with weights that runs inside the context: its name, which begins with `prefix`,
    the module, what goes in and what comes out."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if [*module.parameters(recurse=False)] and not [*module.children()]:
                hook = partial(measure, f"{prefix}{name}".strip("."))
                stack.callback(module.register_forward_hook(hook).remove)
        yield


class Ranges:
    """The largest activation of each layer, and its part of what the layer's graph holds."""

    def __init__(self) -> None:
        self.largest: dict[str, tuple[float, float]] = {}  # layer -> part of the range, activation

    def watch(self, model: nn.Module, prefix: str) -> AbstractContextManager[None]:
        """Measure a model that runs inside the context; `prefix` is what the names of its layers begin with."""
        return watch_layers(model, prefix, self._measure)

    def _measure(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = name.rpartition(".")[2]
        limits = (LARGEST * HEADROOM if kind in kinds else LARGEST for kinds in (READ_HIDDEN, MAKE_HIDDEN))
        for x, limit in zip((inputs[0], output), limits, strict=True):
            if x.is_floating_point() and x.numel():
                value = float(x.abs().max())
                self.largest[name] = max(self.largest.get(name, (0.0, 0.0)), (value / limit, value))

    def warning(self) -> str | None:
        """One line about the layer that comes closest to its limit; None if none comes near."""
        if not self.largest:
            return None
        name = max(self.largest, key=lambda name: self.largest[name])
        part, value = self.largest[name]
        if part < WARNED_PART:
            return None
        what = "a graph in float16 will refuse such prompts" if part > 1 else "other prompts may exceed it"
        return (
            f"warning: {name}: activations reach {value:,.0f} with the calibration prompts, float16 holds "
            f"{value / part:,.0f} there: {what}. dtype: bfloat16 computes in float32"
        )
