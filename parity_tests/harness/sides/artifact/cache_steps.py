"""What the integers of a quantized cache count in: the scales that its graph reads.

Knows attention; nothing about what is compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qwen3vl_export.runtime.arrays import Floats

from .float_activations import CACHE_SCALES, quantized_attention

PAST = (3, 4)  # inputs of attention: keys and values


def cache_steps(path: Path) -> Floats:
    """Of every layer's keys and of its values, in the order of the decoder's inputs: float32 [2 L, 1, K, E]."""
    graph = onnx.load(path, load_external_data=False).graph
    scales = {tensor.name: tensor for tensor in graph.initializer}
    read_by = {
        attention.input[past]: numpy_helper.to_array(scales[attention.input[scale]])
        for attention in filter(None, map(quantized_attention, graph.node))
        for past, scale in zip(PAST, CACHE_SCALES, strict=True)
    }
    steps: Floats = np.stack([read_by[value.name][:, :, 0] for value in graph.input if value.name in read_by])
    return steps
