"""A cache in 8 bits: attention stores keys and values as integers, in units of a scale for each channel of a head.

Keys and values are divided by their scales, queries multiplied by those of keys, results by those of values: scores and
results are what they were. `GroupQueryAttention` then needs no scales, with which it is slower. It rounds half to even
what it stores, limits it to [-128, 127] and reads it back, new tokens too: what a token sees does not depend on how the
prompt was split into calls.

That is fast for a few new tokens. For many, onnxruntime 1.32 takes three times as long as in floating point, so a
branch attends to the rounded numbers as floats. Both branches store and read the same numbers.

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
MANY = 24  # new tokens that take the branch in floating point; with fewer the other one is faster
OPERATOR_INPUTS = 7  # of `GroupQueryAttention` without a quantized cache
PAST, PRESENT = slice(3, 5), slice(1, 3)  # its keys and values: inputs, and outputs

# `past` and `total` are numbers of tokens, int64 [1]; a row of a buffer may be longer than `total`.
_BODY = """<domain: "{domain}", opset_import: ["" : {opset}, "{microsoft}" : 1]>
{name} (q, k, v, past_k, past_v, last, total_length, k_scale, v_scale, q_scale, out_scale, is_many, past, total, unit)
=> (out, next_k, next_v) {{
    q_1 = Mul (q, q_scale)
    k_1 = Div (k, k_scale)
    v_1 = Div (v, v_scale)
    out_1, next_k, next_v = If (is_many) <
        then_branch = many () => ({float}[b, s, w] out_2, int8[b, n, t, e] next_k_2, int8[b, n, t, e] next_v_2) {{
            tokens = Constant <value_ints: ints = [2]> ()
            first = Constant <value_ints: ints = [0]> ()
            end = Constant <value_ints: ints = [{end}]> ()
            by_head = Constant <value_ints: ints = [0, 0, {heads}, -1]> ()
            lowest = Constant <value_float: float = -128.0> ()
            highest = Constant <value_float: float = 127.0> ()
            least = CastLike (lowest, q)
            most = CastLike (highest, q)
            {parts}
            out_2, all_k, all_v = {microsoft}.GroupQueryAttention <{attributes}> (
                q_1, limited_k, limited_v, old_k, old_v, last, total_length
            )
        }},
        else_branch = few () => ({float}[b, s, w] out_3, int8[b, n, t, e] next_k_3, int8[b, n, t, e] next_v_3) {{
            out_3, next_k_3, next_v_3 = {microsoft}.GroupQueryAttention <{attributes}, k_quant_type: string =
                "PER_TENSOR", v_quant_type: string = "PER_TENSOR", kv_cache_bit_width: int = 8> (
                q_1, k_1, v_1, past_k, past_v, last, total_length, , , , , , unit, unit
            )
        }}
    >
    out = Mul (out_1, out_scale)
}}"""

# Of keys or of values ({x}): new ones as whole floats, old ones as floats, and the integers of both.
_PART = """nearest_{x} = Round ({x}_1)
            limited_{x} = Clip (nearest_{x}, least, most)
            stored_{x} = Slice (past_{x}, first, past, tokens)
            old_{x} = CastLike (stored_{x}, q)
            integers_{x} = Cast <to: int = 3> (limited_{x})
            heads_{x} = Reshape (integers_{x}, by_head)
            added_{x} = Transpose <perm: ints = [0, 2, 1, 3]> (heads_{x})
            room_{x} = Slice (past_{x}, total, end, tokens)
            next_{x}_2 = Concat <axis: int = 2> (stored_{x}, added_{x}, room_{x})"""


def quantize_cache(model: ir.Model, scales: Sequence[Scales]) -> ir.Model:
    """Store the cache of a decoder in int8.

    Args:
        scales: of keys and values of every layer.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    rows = inputs[INPUTS_EMBEDS]
    assert rows.dtype is not None
    lengths = _count_tokens(graph, rows, inputs[ATTENTION_MASK])
    unit = _constant(graph, "cache.unit", np.ones(1, np.float32))
    for layer, parts in enumerate(scales):
        (node,) = inputs[past_name(layer, "key")].consumers()
        identifier = (PLACEHOLDER_DOMAIN, QUANTIZED_ATTENTION, "")
        if identifier not in model.functions:
            model.functions[identifier] = _build_function(node, rows.dtype)
        group = node.attributes["num_heads"].as_int() // node.attributes["kv_num_heads"].as_int()
        keys, values = (_as_divisors(array, rows.dtype) for array in parts)
        arrays = {
            "keys": keys,
            "values": values,
            "queries": np.repeat(keys, group, axis=1),  # query head n reads key head n // group
            "results": np.repeat(values, group, axis=1),
        }
        factors = [_constant(graph, f"cache_scale.{layer}.{name}", array.reshape(-1)) for name, array in arrays.items()]
        for value in (*node.inputs[PAST], *node.outputs[PRESENT]):
            assert value is not None
            value.dtype = ir.DataType.INT8
        node.domain, node.op_type, node.version = PLACEHOLDER_DOMAIN, QUANTIZED_ATTENTION, None
        node.attributes.clear()
        added = [*factors, *lengths, unit]
        node.resize_inputs(OPERATOR_INPUTS + len(added))
        for index, value in enumerate(added, start=OPERATOR_INPUTS):
            node.replace_input_with(index, value)
    model = passes.InlinePass()(model).model
    return passes.IdentityEliminationPass()(model).model


def _build_function(node: ir.Node, dtype: ir.DataType) -> ir.Function:
    """Attention over a quantized cache, in place of a `GroupQueryAttention` of this dtype."""
    heads = node.attributes["kv_num_heads"].as_int()
    attributes = (
        f"num_heads: int = {node.attributes['num_heads'].as_int()}, kv_num_heads: int = {heads}, "
        f"scale: float = {node.attributes['scale'].as_float()}"
    )
    text = _BODY.format(
        domain=PLACEHOLDER_DOMAIN,
        opset=OPSET,
        microsoft=MICROSOFT,
        name=QUANTIZED_ATTENTION,
        float={ir.DataType.FLOAT: "float", ir.DataType.FLOAT16: "float16"}[dtype],
        heads=heads,
        end=np.iinfo(np.int64).max,
        attributes=attributes,
        parts="\n            ".join(_PART.format(x=x) for x in ("k", "v")),
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


def _as_divisors(scales: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.floating]:
    """Scales in the graph's floating type; where a head is always zero, they are small."""
    kind = dtype.numpy()
    divisors: NDArray[np.floating] = np.maximum(scales, np.finfo(kind).tiny).astype(kind)
    return divisors


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
