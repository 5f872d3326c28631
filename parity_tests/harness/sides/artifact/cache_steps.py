"""What the integers of a quantized cache count in: the scales that its graph reads.

Knows `GroupQueryAttention`; nothing about what is compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from qwen3vl_export.runtime.arrays import Floats

ATTENTION = "GroupQueryAttention"
PAST = (3, 4)  # inputs: keys and values
SCALES = (12, 13)


def has_quantized_cache(node: NodeProto) -> bool:
    return node.op_type == ATTENTION and len(node.input) > SCALES[0] and bool(node.input[SCALES[0]])


def cache_steps(path: Path) -> Floats:
    """Of every layer's keys and of its values, in the order of the decoder's inputs: float32 [2 L, 1, K, E]."""
    model = onnx.load(path, load_external_data=False)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    read_by = {
        node.input[past]: numpy_helper.to_array(scales[node.input[scale]], str(path.parent))
        for node in model.graph.node
        if has_quantized_cache(node)
        for past, scale in zip(PAST, SCALES, strict=True)
    }
    steps: Floats = np.stack(
        [read_by[value.name][0, :, 0][None] for value in model.graph.input if value.name in read_by]
    )
    return steps
