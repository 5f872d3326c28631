"""A cache in 8 bits: `GroupQueryAttention` stores integers and computes with what they stand for.

The operator divides new keys and values by their scales, rounds half to even, limits them to [-128, 127], and reads
them back from the cache, those of the same call too: what a token sees does not depend on how the prompt was split into
calls. Queries and products stay in the graph's floating type.

Knows the operator; nothing about where scales come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...contract import past_name
from ..calibration.cache_ranges import Scales

OPERATOR = "GroupQueryAttention"
PARTS = ("key", "value")
PAST = (3, 4)  # indices of its inputs, by part
SCALES = (12, 13)
PRESENT = (1, 2)  # and of its outputs
ATTRIBUTES = (
    ir.AttrString("k_quant_type", "PER_CHANNEL"),
    ir.AttrString("v_quant_type", "PER_CHANNEL"),
    ir.AttrInt64("kv_cache_bit_width", 8),
)


def quantize_cache(model: ir.Model, scales: Sequence[Scales]) -> ir.Model:
    """Store the cache of a decoder in int8.

    Args:
        scales: of keys and values of every layer.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    for layer, arrays in enumerate(scales):
        (node,) = inputs[past_name(layer, PARTS[0])].consumers()
        node.resize_inputs(SCALES[-1] + 1)
        node.attributes.update({attribute.name: attribute for attribute in ATTRIBUTES})
        for part, past, scale, present, array in zip(PARTS, PAST, SCALES, PRESENT, arrays, strict=True):
            node.replace_input_with(scale, _constant(model, f"cache_scale.{layer}.{part}", array))
            for value in (node.inputs[past], node.outputs[present]):
                assert value is not None
                value.dtype = ir.DataType.INT8
    return model


def _constant(model: ir.Model, name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value
