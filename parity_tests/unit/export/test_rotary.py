"""Rotations that transformers writes out become one operator where they mean the same, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from qwen3vl_export.exporter.rewrites.rotary import fuse_rotations
from qwen3vl_export.exporter.simplify import clean

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
ROTATION = """g (float16[b, 3, s, 8] x, float[b, s, 4] angles) => (float16[b, 3, s, 8] out)
<float[b, s, 8] both, float[b, s, 8] cosines, float[b, s, 8] sines, float[b, s, 8] scaled, float16[b, s, 8] c,
 float16[b, s, 8] n, float16[b, 1, s, 8] c_heads, float16[b, 1, s, 8] n_heads, float16[b, 3, s, 8] turned>
{
    both = Concat <axis: int = -1> (angles, angles)
    cosines = Cos (both)
    sines = Sin (both)
    factor = Constant <value_float: float = 0.9> ()
    scaled = Mul (cosines, factor)
    c = Cast <to = 10> (scaled)
    n = Cast <to = 10> (sines)
    heads = Constant <value_ints: ints = [1]> ()
    c_heads = Unsqueeze (c, heads)
    n_heads = Unsqueeze (n, heads)
    straight = Mul (x, c_heads)
    zero = Constant <value_ints: ints = [0]> ()
    half = Constant <value_ints: ints = [4]> ()
    end = Constant <value_ints: ints = [9223372036854775807]> ()
    last = Constant <value_ints: ints = [3]> ()
    lower = Slice (x, zero, half, last, heads)
    upper = Slice (x, half, end, last, heads)
    negative = Neg (upper)
    turned = Concat <axis: int = -1> (negative, lower)
    crossed = Mul (turned, n_heads)
    out = Add (straight, crossed)
}"""


def parse(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(HEADER + text))


def run(model: ir.Model, feeds: dict[str, Any]) -> Any:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize(
    ("old", "new"), [("", ""), ("Add (straight, crossed)", "Add (crossed, straight)"), ("[3]> ()", "[-1]> ()")]
)
def test_a_rotation_becomes_one_operator(old: str, new: str) -> None:
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((2, 3, 5, 8)).astype(np.float16),
        "angles": rng.standard_normal((2, 5, 4), np.float32) * 9,
    }
    text = ROTATION.replace(old, new)
    fused = clean(fuse_rotations(parse(text)))
    ops = [node.op_type for node in fused.graph]
    assert ops.count("RotaryEmbedding") == 1 and not {"Neg", "Add", "Slice"} & set(ops)
    np.testing.assert_allclose(run(fused, feeds), run(parse(text), feeds), rtol=0, atol=4e-3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(negative, lower)", "(lower, negative)"),
        ("Concat <axis: int = -1> (angles, angles)", "Pad (angles, pads)"),  # two halves that differ
        ("upper = Slice (x, half, end", "upper = Slice (x, zero, half"),
        ("lower = Slice (x, zero", "lower = Slice (turning, zero"),
        ("Unsqueeze (n, heads)", "Unsqueeze (n, zero)"),
        ("Add (straight, crossed)", "Sub (straight, crossed)"),
        ("(cosines, factor)", "(cosines, weights)"),  # that scales the halves apart
    ],
)
def test_other_sums_stay(old: str, new: str) -> None:
    text = ROTATION.replace(old, new).replace("float[b, s, 4] angles)", "float[b, s, 4] angles, int64[6] pads, "
        "float[8] weights, float16[b, 3, s, 8] turning)")  # fmt: skip
    assert "RotaryEmbedding" not in {node.op_type for node in fuse_rotations(parse(text)).graph}
