"""Mistakes in an artifact's weights and settings: functions that break one thing in a file, in place.

Weights are found by the parameter's name; `PieceNotFound` is raised if the artifact has none of that name. Knows how to
break things; not whether anybody notices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.external_data_helper import ExternalDataInfo

from qwen3vl_export.contract import Facts

from .graphs import PieceNotFound


class Weights:
    """The weights of one graph, written in place.

    Args:
        path: the `.onnx` file; its external data is in the same directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model = onnx.load(path, load_external_data=False)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __call__(self, suffix: str) -> NDArray[Any]:
        """The only weight whose name ends in `suffix`; assigning to its elements writes the file."""
        names = [name for name in self.tensors if name.endswith(suffix)]
        if len(names) != 1:
            raise PieceNotFound(f"{len(names)} weights named *{suffix}")
        tensor = self.tensors[names[0]]
        data = ExternalDataInfo(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        path = self.path.with_name(data.location)
        array: NDArray[Any] = np.memmap(path, dtype, "r+", data.offset or 0, tuple(tensor.dims))
        return array


def temporal_slice_dropped(weights: Weights, facts: Facts) -> None:
    """The patch embedding reads the first frame of two only."""
    kernel = weights("patch_embed.proj.weight")
    rows = kernel.reshape(-1, facts.in_channels, facts.temporal_patch_size, facts.patch_size**2)
    rows[:, :, 1:] = 0


def patch_bias_lost(weights: Weights, facts: Facts) -> None:
    weights("patch_embed.proj.bias")[:] = 0


def position_table_quantized(weights: Weights, facts: Facts) -> None:
    """Learned positions on the 255 steps of a signed byte."""
    table = weights("pos_embed.weight")
    step = np.abs(table).max() / 127
    table[:] = np.round(table / step) * step


def lm_head_order(weights: Weights, facts: Facts) -> None:
    """The head's values in the order of its transpose."""
    head = weights("lm_head.weight")
    head[:] = np.ascontiguousarray(head.T).reshape(head.shape)


def layer_duplicated(weights: Weights, facts: Facts) -> None:
    """Layer 2 holds the weights of layer 1."""
    names = [name for name in weights.tensors if "layers.1." in name]
    if not names:
        raise PieceNotFound("no weights of layer 1")
    for name in names:
        weights(name.replace("layers.1.", "layers.2."))[:] = weights(name)


def block_scale_doubled(weights: Weights, facts: Facts) -> None:
    """One block of a quantized weight, 16 numbers, multiplied by 2."""
    weights("layers.2.mlp.down_proj.weight.scales")[7, 3] *= 2


def exponent_flipped(weights: Weights, facts: Facts) -> None:
    """One bit of the largest weight's exponent: four times as large, or as small."""
    kernel = weights("layers.2.mlp.down_proj.weight")
    largest = int(np.abs(kernel).argmax())
    raw = kernel.reshape(-1)[largest : largest + 1].view(np.uint8)
    raw[-1] ^= 1


# Mistakes in settings.


def turn_not_opened(template: str) -> str:
    """A chat template that never writes the assistant's header."""
    changed = template.replace("if add_generation_prompt", "if false and add_generation_prompt")
    if changed == template:
        raise PieceNotFound("the chat template has no {% if add_generation_prompt %}")
    return changed


def replace_settings(**values: Any) -> Callable[[str], str]:
    """Other values for keys of a JSON file."""
    return lambda text: json.dumps({**json.loads(text), **values}, indent=2) + "\n"
