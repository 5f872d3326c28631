"""The `GridAttention` placeholder in real operators, per target: every frame of every image attends to itself only.

    ort       where all frames have as many patches (one picture, one video, pictures of one area): one batch of frames
              in `com.microsoft.MultiHeadAttention` without a mask, onnxruntime's flash attention, which never stores
              the score matrix. Otherwise a Loop over the images, the frames of each as a batch.
    portable  a Loop over frames and chunks of queries, MatMul and Softmax in standard operators (memory linear in
              patches)

The Loop and its sequence run on CPU whatever the provider, so on a GPU each layer would wait for two copies; the branch
without it stays on the GPU (`opsets.py`). The segments are those that `submodules/geometry.py` computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx import parser

from ..opsets import MICROSOFT
from ..submodules.attention import GRID_ATTENTION
from ..submodules.geometry import PLACEHOLDER_DOMAIN
from ..trace import OPSET

_HEADER = f"""<domain: "{PLACEHOLDER_DOMAIN}", opset_import: ["" : {OPSET}, "{MICROSOFT}" : 1]>
{GRID_ATTENTION} <num_heads, head_size, scale> (q, k, v, segments) => (out)"""

# A Loop over the rows of `segments` [M, n]; {columns} names the row's values, {body} computes `joined` [rows, D] from
# them, {step} passes that on, {end} joins all of them to `{out}`.
_LOOP = """count_1 = Shape <start: int = 0, end: int = 1> (segments)
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
    {end}"""

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
        "end": "{out} = ConcatFromSequence <axis: int = 0> (parts)",
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
    {out} = Compress <axis: int = 0> (rows, real)""",
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

_BATCH = """q_frames = Reshape (q, by_frame)
    k_frames = Reshape (k, by_frame)
    v_frames = Reshape (v, by_frame)
    o_frames = com.microsoft.MultiHeadAttention <num_heads: int = {heads}, scale: float = {scale}>
        (q_frames, k_frames, v_frames)
    by_patch = Constant <value_ints: ints = [-1, {width}]> ()
    {out} = Reshape (o_frames, by_patch)"""

# An encoder of fixed size takes one image of one frame.
_ONE_FRAME = """{{
    by_frame = Constant <value_ints: ints = [1, -1, {width}]> ()
    {batch}
}}"""

# What does not depend on the layer is computed outside of the branches, where it is shared by all layers.
_BRANCHES = """{{
    firsts, ends, frame_counts = Split <axis: int = 1, num_outputs: int = 3> (segments)
    patches = Sub (ends, firsts)
    areas = Div (patches, frame_counts)
    largest = ReduceMax <keepdims: int = 0> (areas)
    smallest = ReduceMin <keepdims: int = 0> (areas)
    alike = Equal (largest, smallest)
    all_frames_2d = ReduceSum (frame_counts)
    patches_of_frame = Constant <value_ints: ints = [-1, {width}]> ()
    one = Constant <value_ints: ints = [1]> ()
    all_frames = Reshape (all_frames_2d, one)
    by_frame = Concat <axis: int = 0> (all_frames, patches_of_frame)
    out = If (alike) <
        then_branch = together () => (float[n, {width}] from_batch) {{ {batch} }},
        else_branch = apart () => (float[n, {width}] from_loop) {{ {loop} }}
    >
}}"""

_BODIES = {
    "ort": ("first, end, frames", _FRAMES_AS_BATCH),
    "portable": ("first_query, end_query, first_key, end_key", _CHUNKS_OF_QUERIES),
}


def build_attention_function(node: ir.Node, target: str) -> ir.Function:
    """The body of `GridAttention` for the heads, width and scale of `node`; all layers of a tower share them."""
    heads, size = node.attributes["num_heads"].as_int(), node.attributes["head_size"].as_int()
    values = {"width": heads * size, "heads": heads, "size": size, "scale": node.attributes["scale"].as_float()}
    bound = node.inputs[3] is not None and node.inputs[3].const_value is not None
    if target == "portable":
        text = f"{{ {_loop(target, 'out', values)} }}"
    elif bound:
        text = _ONE_FRAME.format(batch=_BATCH.format(out="out", **values), **values)
    else:
        batch, loop = _BATCH.format(out="from_batch", **values), _loop(target, "from_loop", values)
        text = _BRANCHES.format(batch=batch, loop=loop, **values)
    return ir.serde.deserialize_function(parser.parse_function(f"{_HEADER} {text}"))


def _loop(target: str, out: str, values: Mapping[str, float]) -> str:
    """The nodes of a target's Loop, whose result is called `out`."""
    columns, body = _BODIES[target]
    join = {field: template.format(out=out, **values) for field, template in _JOINS[target].items()}
    return _LOOP.format(columns=columns, num_columns=columns.count(",") + 1, body=body.format(**values), **join)
