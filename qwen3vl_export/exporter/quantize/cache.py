"""A cache in 8 bits: attention stores integers and computes with what they stand for.

`GroupQueryAttention` divides new keys and values by their scales, rounds half to even, limits them to [-128, 127], and
reads them back from the cache, those of the same call too: what a token sees does not depend on how the prompt was
split into calls. Queries and products stay in the graph's floating type.

It is fast for a few new tokens. For many, onnxruntime's products with integers take two to four times as long as those
in floating point, so a branch restores the cache first. Both branches store the same integers and read the same
numbers.

Knows operators; nothing about where scales come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import parser
from onnx_ir.passes import common as passes

from ...contract import ATTENTION_MASK, INPUTS_EMBEDS, past_name
from ..calibration.cache_ranges import Scales
from ..opsets import MICROSOFT
from ..submodules.geometry import PLACEHOLDER_DOMAIN
from ..trace import OPSET

QUANTIZED_ATTENTION = "QuantizedAttention"
MANY = 16  # new tokens, from which on the cache is restored
OPERATOR_INPUTS = 7  # of `GroupQueryAttention` without a quantized cache
PAST, PRESENT = slice(3, 5), slice(1, 3)  # its keys and values: inputs, and outputs

# `new`, `past` and `total` are numbers of tokens, int64 [1]; a row of a buffer may be longer than `total`.
_BODY = """<domain: "{domain}", opset_import: ["" : {opset}, "{microsoft}" : 1]>
{name} (q, k, v, past_k, past_v, last, total_length, k_scale, v_scale, is_many, past, total) => (out, next_k, next_v) {{
    out, next_k, next_v = If (is_many) <
        then_branch = restored () => ({float}[b, s, w] out_1, int8[b, n, t, e] next_k_1, int8[b, n, t, e] next_v_1) {{
            tokens = Constant <value_ints: ints = [2]> ()
            first = Constant <value_ints: ints = [0]> ()
            end = Constant <value_ints: ints = [{end}]> ()
            least = Constant <value_float: float = -128.0> ()
            most = Constant <value_float: float = 127.0> ()
            {key}
            {value}
            out_1, all_k, all_v = {microsoft}.GroupQueryAttention <{attributes}> (
                q, new_k, new_v, old_k, old_v, last, total_length
            )
        }},
        else_branch = quantized () => ({float}[b, s, w] out_2, int8[b, n, t, e] next_k_2, int8[b, n, t, e] next_v_2) {{
            out_2, next_k_2, next_v_2 = {microsoft}.GroupQueryAttention <{attributes}, k_quant_type: string =
                "PER_CHANNEL", v_quant_type: string = "PER_CHANNEL", kv_cache_bit_width: int = 8> (
                q, k, v, past_k, past_v, last, total_length, , , , , , k_scale, v_scale
            )
        }}
    >
}}"""

# Of keys or of values ({x}): the rounded new ones as floats, the old ones as floats, and the integers of both. In
# onnxruntime 1.32, QuantizeLinear with a scale for each of the last axis takes as long as attention itself.
_RESTORED = """flat_{x} = Constant <value_ints: ints = [-1]> ()
            channels_{x} = Reshape ({x}_scale, flat_{x})
            wide_{x} = Cast <to: int = 1> ({x})
            steps_{x} = Div (wide_{x}, channels_{x})
            nearest_{x} = Round (steps_{x})
            limited_{x} = Clip (nearest_{x}, least, most)
            rounded_{x} = Mul (limited_{x}, channels_{x})
            new_{x} = Cast <to: int = {number}> (rounded_{x})
            integers_{x} = Cast <to: int = 3> (limited_{x})
            stored_{x} = Slice (past_{x}, first, past, tokens)
            stored_wide_{x} = Cast <to: int = 1> (stored_{x})
            restored_{x} = Mul (stored_wide_{x}, {x}_scale)
            old_{x} = Cast <to: int = {number}> (restored_{x})
            by_head_{x} = Constant <value_ints: ints = [0, 0, {heads}, -1]> ()
            heads_{x} = Reshape (integers_{x}, by_head_{x})
            added_{x} = Transpose <perm: ints = [0, 2, 1, 3]> (heads_{x})
            room_{x} = Slice (past_{x}, total, end, tokens)
            next_{x}_1 = Concat <axis: int = 2> (stored_{x}, added_{x}, room_{x})"""


def quantize_cache(model: ir.Model, scales: Sequence[Scales]) -> ir.Model:
    """Store the cache of a decoder in int8.

    Args:
        scales: of keys and values of every layer.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    lengths = _count_tokens(graph, inputs[INPUTS_EMBEDS], inputs[ATTENTION_MASK])
    for layer, (keys, values) in enumerate(scales):
        (node,) = inputs[past_name(layer, "key")].consumers()
        identifier = (PLACEHOLDER_DOMAIN, QUANTIZED_ATTENTION, "")
        if identifier not in model.functions:
            model.functions[identifier] = _build_function(node, inputs[INPUTS_EMBEDS].dtype)
        constants = [
            _constant(graph, f"cache_scale.{layer}.{part}", array) for part, array in (("key", keys), ("value", values))
        ]
        for value in (*node.inputs[PAST], *node.outputs[PRESENT]):
            assert value is not None
            value.dtype = ir.DataType.INT8
        node.domain, node.op_type, node.version = PLACEHOLDER_DOMAIN, QUANTIZED_ATTENTION, None
        node.attributes.clear()
        added = [*constants, *lengths]
        node.resize_inputs(OPERATOR_INPUTS + len(added))
        for index, value in enumerate(added, start=OPERATOR_INPUTS):
            node.replace_input_with(index, value)
    model = passes.InlinePass()(model).model
    return passes.IdentityEliminationPass()(model).model


def _build_function(node: ir.Node, dtype: ir.DataType | None) -> ir.Function:
    """Attention over a quantized cache, in place of a `GroupQueryAttention` of this dtype."""
    assert dtype is not None
    heads = node.attributes["kv_num_heads"].as_int()
    attributes = (
        f"num_heads: int = {node.attributes['num_heads'].as_int()}, kv_num_heads: int = {heads}, "
        f"scale: float = {node.attributes['scale'].as_float()}"
    )
    parts = {name: _RESTORED.format(x=x, heads=heads, number=int(dtype)) for name, x in (("key", "k"), ("value", "v"))}
    text = _BODY.format(
        domain=PLACEHOLDER_DOMAIN,
        opset=OPSET,
        microsoft=MICROSOFT,
        name=QUANTIZED_ATTENTION,
        float={ir.DataType.FLOAT: "float", ir.DataType.FLOAT16: "float16"}[dtype],
        end=np.iinfo(np.int64).max,
        attributes=attributes,
        **parts,
    )
    return ir.serde.deserialize_function(parser.parse_function(text))


def _count_tokens(graph: ir.Graph, rows: ir.Value, mask: ir.Value) -> list[ir.Value]:
    """Whether there are many new tokens, bool; how many are in the cache, and how many will be, int64 [1]."""
    new, total = (ir.node("Shape", [value], {"start": 1, "end": 2}) for value in (rows, mask))
    past = ir.node("Sub", [total.outputs[0], new.outputs[0]])
    many = ir.node("GreaterOrEqual", [new.outputs[0], _constant(graph, "cache.many", np.array([MANY]))])
    is_many = ir.node("Squeeze", [many.outputs[0]])
    graph.insert_before(graph[0], [new, total, past, many, is_many])
    lengths = {"cache.is_many": is_many, "cache.past": past, "cache.total": total}
    for name, node in lengths.items():
        node.outputs[0].name = name
    return [node.outputs[0] for node in lengths.values()]


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
