"""Lowering: placeholder operators to real ones, for each target. `ir.Model -> ir.Model`.

`Guard` becomes a Reshape whose node name is the error message, `Experts` is lowered by `lowering/experts.py`.
`GridAttention` becomes a Loop over the segments that `submodules/geometry.py` computes:

    ort       one iteration per image, its frames as a batch, `com.microsoft.MultiHeadAttention` without a mask
              (onnxruntime's flash attention on CPU, which never stores the score matrix)
    portable  one iteration per frame and chunk of queries, MatMul and Softmax in standard operators (memory linear in
              patches)

Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx import parser
from onnx_ir.passes import common as passes

from ..opsets import MICROSOFT, declare_microsoft
from ..submodules.attention import GRID_ATTENTION
from ..submodules.experts import EXPERTS
from ..submodules.geometry import GUARD, PLACEHOLDER_DOMAIN
from ..trace import OPSET
from .experts import build_experts_function

_HEADER = f"""<domain: "{PLACEHOLDER_DOMAIN}", opset_import: ["" : {OPSET}, "{MICROSOFT}" : 1]>
{GRID_ATTENTION} <num_heads, head_size, scale> (q, k, v, segments) => (out)"""

# A Loop over the rows of `segments` [M, n]; {columns} names the row's values, {body} computes `joined` [rows, D] from
# them, {step} passes that on, {end} joins all of them to `out`.
_LOOP = """{{
    count_1 = Shape <start: int = 0, end: int = 1> (segments)
    count = Squeeze (count_1)
    go = Constant <value: tensor = bool {{1}}> ()
    {start}
    parts = Loop (count, go{state}) <body = each (int64 i, bool c{takes}) => (bool again, {gives}) {{
        again = Identity (c)
        axis = Constant <value_ints: ints = [0]> ()
        index = Unsqueeze (i, axis)
        row_2d = Gather (segments, index)
        row = Squeeze (row_2d, axis)
        {columns} = Split <axis: int = 0, num_outputs: int = {num_columns}> (row)
        {body}
        {step}
    }}>
    {end}
}}"""

# How the results of the iterations are joined, with a fixed number of copies per patch whatever their number. A
# sequence holds parts of any length, but OpenVINO computes wrong values with sequences, so the portable Loop stacks
# its parts, padded to the longest, and removes the padding afterwards.
_JOINS = {
    "ort": {
        "start": "none = SequenceEmpty <dtype: int = 1> ()",
        "state": ", none",
        "takes": ", seq(float[n, {width}]) before",
        "gives": "seq(float[n, {width}]) after",
        "step": "after = SequenceInsert (before, joined)",
        "end": "out = ConcatFromSequence <axis: int = 0> (parts)",
    },
    "portable": {
        "start": """starts, ends, first_keys, end_keys = Split <axis: int = 1, num_outputs: int = 4> (segments)
    lengths = Sub (ends, starts)
    most = ReduceMax <keepdims: int = 0> (lengths)
    zero = Constant <value_ints: ints = [0]> ()
    most_1 = Unsqueeze (most, zero)""",
        "state": "",
        "takes": "",
        "gives": "float[n, {width}] padded",
        "step": """length = Sub (end_query, first_query)
        lack = Sub (most_1, length)
        pads = Concat <axis: int = 0> (axis, axis, lack, axis)
        padded = Pad (joined, pads)""",
        "end": """nought = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    places = Range (nought, most, one)
    real_2d = Less (places, lengths)
    all = Constant <value_ints: ints = [-1]> ()
    real = Reshape (real_2d, all)
    known = Constant <value_ints: ints = [-1, {width}]> ()
    rows = Reshape (parts, known)
    out = Compress <axis: int = 0> (rows, real)""",
    },
}

_FRAMES_AS_BATCH = """q_rows = Slice (q, first, end, axis)
        k_rows = Slice (k, first, end, axis)
        v_rows = Slice (v, first, end, axis)
        rest = Constant <value_ints: ints = [-1, {width}]> ()
        shape = Concat <axis: int = 0> (frames, rest)
        q_3d = Reshape (q_rows, shape)
        k_3d = Reshape (k_rows, shape)
        v_3d = Reshape (v_rows, shape)
        o_3d = com.microsoft.MultiHeadAttention <num_heads: int = {heads}, scale: float = {scale}> (q_3d, k_3d, v_3d)
        joined = Reshape (o_3d, rest)"""

_CHUNKS_OF_QUERIES = """q_rows = Slice (q, first_query, end_query, axis)
        k_rows = Slice (k, first_key, end_key, axis)
        v_rows = Slice (v, first_key, end_key, axis)
        rest = Constant <value_ints: ints = [-1, {width}]> ()
        by_head = Constant <value_ints: ints = [-1, {heads}, {size}]> ()
        q_3d = Reshape (q_rows, by_head)
        k_3d = Reshape (k_rows, by_head)
        v_3d = Reshape (v_rows, by_head)
        q_heads = Transpose <perm: ints = [1, 0, 2]> (q_3d)
        k_heads = Transpose <perm: ints = [1, 2, 0]> (k_3d)
        v_heads = Transpose <perm: ints = [1, 0, 2]> (v_3d)
        factor = Constant <value_float: float = {scale}> ()
        q_scaled = Mul (q_heads, factor)
        scores = MatMul (q_scaled, k_heads)
        weights = Softmax <axis: int = -1> (scores)
        o_heads = MatMul (weights, v_heads)
        o_3d = Transpose <perm: ints = [1, 0, 2]> (o_heads)
        joined = Reshape (o_3d, rest)"""

# An encoder of fixed size takes one image of one frame: no loop.
_ONE_FRAME = """{{
    frame = Constant <value_ints: ints = [1, -1, {width}]> ()
    rows = Constant <value_ints: ints = [-1, {width}]> ()
    q_3d = Reshape (q, frame)
    k_3d = Reshape (k, frame)
    v_3d = Reshape (v, frame)
    o_3d = com.microsoft.MultiHeadAttention <num_heads: int = {heads}, scale: float = {scale}> (q_3d, k_3d, v_3d)
    out = Reshape (o_3d, rows)
}}"""

_BODIES = {
    "ort": ("first, end, frames", _FRAMES_AS_BATCH),
    "portable": ("first_query, end_query, first_key, end_key", _CHUNKS_OF_QUERIES),
}


def lower(target: str) -> Callable[[ir.Model], ir.Model]:
    """The pass that replaces every placeholder of a skeleton for `target` (`ort` or `portable`)."""

    def replace_placeholders(model: ir.Model) -> ir.Model:
        for node in model.graph:
            if node.domain != PLACEHOLDER_DOMAIN:
                continue
            if node.op_type == GUARD:
                _lower_guard(node)
            elif node.op_identifier() not in model.functions:
                model.functions[node.op_identifier()] = _FUNCTIONS[node.op_type](node, target)
        if model.functions:
            model = passes.InlinePass()(model).model
            model = passes.IdentityEliminationPass()(model).model
        declare_microsoft(model)
        return model

    return replace_placeholders


def _lower_guard(node: ir.Node) -> None:
    """`Guard(x, shape)` to `Reshape(x, shape)`, whose error for differing row counts has the node's name."""
    node.name = f"guard: {node.attributes['message'].as_string()}"
    node.domain, node.op_type, node.version = "", "Reshape", None
    node.attributes.clear()
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 1)


def _build_attention_function(node: ir.Node, target: str) -> ir.Function:
    """The body of `GridAttention` for the heads, width and scale of `node`; all layers of a tower share them."""
    heads, size = node.attributes["num_heads"].as_int(), node.attributes["head_size"].as_int()
    columns, body = _BODIES[target]
    values = {"width": heads * size, "heads": heads, "size": size, "scale": node.attributes["scale"].as_float()}
    bound = node.inputs[3] is not None and node.inputs[3].const_value is not None
    if bound and target == "ort":
        text = _ONE_FRAME.format(**values)
    else:
        join = {field: template.format(**values) for field, template in _JOINS[target].items()}
        iteration = {"columns": columns, "num_columns": columns.count(",") + 1, "body": body.format(**values)}
        text = _LOOP.format(**iteration, **join)
    return ir.serde.deserialize_function(parser.parse_function(f"{_HEADER} {text}"))


_FUNCTIONS = {GRID_ATTENTION: _build_attention_function, EXPERTS: build_experts_function}
