"""Which layers of a tower or decoder are traced: one of every kind; `unroll.py` copies the rest.

All layers of Qwen3-VL are alike but for their weights and their cache; the differences are around them. DeepStack maps
are added after the first layers of the decoder and taken after some blocks of the tower. A mixture of experts may have
some dense layers: then all layers are traced. Knows modules; nothing about graphs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...contract import past_name, present_name
from ..unroll import Stack
from ..weights.inputs import WEIGHTS

COMPARED, LAST = 2, 1  # layers traced besides those next to a DeepStack map: two to compare, and the last


def decoder_stack(language_model: Any, num_deepstack: int) -> Stack | None:
    """Cut a `Qwen3VLTextModel` down to the layers to trace; None if that is all of them.

    Args:
        num_deepstack: maps are added after that many layers.
    """
    layers: nn.ModuleList = language_model.layers
    traced = num_deepstack + COMPARED + LAST
    if not _are_alike(layers, num_deepstack, traced):
        return None
    language_model.layers = layers[:traced]
    prefixes = (
        f"{WEIGHTS}language_model.layers.",
        past_name(0, "").partition("0")[0],
        present_name(0, "").partition("0")[0],
    )
    return Stack(prefixes, len(layers), traced)


def tower_stack(visual: Any) -> Stack | None:
    """Cut a `Qwen3VLVisionModel` down to the blocks to trace; None if that is all of them.

    DeepStack maps are then taken after blocks 1, 2, … instead of those named in its config, which is changed.
    """
    blocks: nn.ModuleList = visual.blocks
    taps = list(visual.config.deepstack_visual_indexes)
    traced = 1 + len(taps) + COMPARED
    taps_fit = bool(taps) and taps == sorted(taps) and taps[0] >= 1 and taps[-1] < len(blocks) - 1
    if not taps_fit or not _are_alike(blocks, 0, traced):
        return None
    visual.blocks = blocks[:traced]
    visual.config.deepstack_visual_indexes = list(range(1, 1 + len(taps)))
    return Stack((f"{WEIGHTS}visual.blocks.",), len(blocks), traced, dict(enumerate(taps, start=1)))


def _are_alike(layers: nn.ModuleList, first: int, traced: int) -> bool:
    """Whether there are more layers than are traced, and all from `first` on are of one kind."""
    return len(layers) > traced and all(_kind(layer) == _kind(layers[-1]) for layer in layers[first:])


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """What layers of one kind have in common: classes, settings, and names, shapes and dtypes of parameters."""
    settings = [
        (
            name,
            type(module),
            {k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and k != "layer_idx"},
        )
        for name, module in layer.named_modules()
    ]
    return settings, [(name, tuple(parameter.shape), parameter.dtype) for name, parameter in layer.named_parameters()]
