"""Rewrites of the decoder: the same numbers from fewer nodes, and graphs they must not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from qwen3vl_export.exporter.rewrites.layout import drop_identity_reshapes, rotate_in_place
from qwen3vl_export.exporter.rewrites.norms import fuse_skip_norms
from qwen3vl_export.exporter.rewrites.rows import use_gemm
from qwen3vl_export.exporter.weights.inputs import WEIGHTS, source_of, weight_inputs

RNG = np.random.default_rng(47)
HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'

NORMS = """g (float[b, s, 8] x, float[b, s, 8] y, float[b, s, 8] z, float[8] w) => (float[b, s, 8] out)
<float[b, s, 8] sum, float[b, s, 8] normed, float[b, s, 8] again, float[b, s, 8] second>
{
    sum = Add (x, y)
    normed = RMSNormalization <epsilon: float = 1e-6> (sum, w)
    again = Add (sum, z)
    second = RMSNormalization <epsilon: float = 1e-3> (again, w)
    total = Add (normed, second)
    out = Add (total, again)
}"""

ROTARY = """g (float[b, s, 24] x, float[b, s, 4] c, float[b, s, 4] n) => (float[b, s, 24] out)
<float[b, s, 3, 8] heads, float[b, 3, s, 8] first, float[b, 3, s, 8] turned, float[b, s, 3, 8] back,
 float[b, s, 24] flat>
{
    four = Constant <value_ints: ints = [0, 0, 3, 8]> ()
    three = Constant <value_ints: ints = [0, 0, 24]> ()
    heads = Reshape (x, four)
    first = Transpose <perm: ints = [0, 2, 1, 3]> (heads)
    turned = RotaryEmbedding (first, c, n)
    back = Transpose <perm: ints = [0, 2, 1, 3]> (turned)
    flat = Reshape (back, three)
    out = Neg (flat)
}"""

RESHAPES = """g (float[b, s, 8] x, int64[3] to) => (float[b, s, 8] out)
<float[b, s, 8] same, float[s, b, 8] other, float[b, s, 8] back>
{
    same = Reshape (x, to)
    turned = Neg (same)
    flip = Constant <value_ints: ints = [0, 0, -1]> ()
    out = Reshape (turned, flip)
}"""

PRODUCTS = """g (float[b, s, 8] x, float[s, 8] y, float[5, 8] v, float[8, 8] w, float[8, 3] z)
=> (float[b, s, 5] a, float[b, s, 8] d, float[s, 8] e, float[b, s, 5] f, float[b, s, 3] h)
{
    v_t = Transpose <perm: ints = [1, 0]> (v)
    w_t = Transpose <perm: ints = [1, 0]> (w)
    a = MatMul (x, v_t)
    c = MatMul (x, w_t)
    once = Sigmoid (c)
    twice = Mul (once, x)
    d = MatMul (twice, w_t)
    e = MatMul (y, w_t)
    both = Add (x, y)
    f = MatMul (both, v_t)
    h = MatMul (x, z)
}"""


def make_feeds(model: ir.Model) -> dict[str, Any]:
    sizes = {"b": 2, "s": 5}
    values = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
        values[value.name] = RNG.standard_normal(shape, np.float32)
    if "to" in values:
        values["to"] = np.array([2, 5, 8])
    return values


def run(model: ir.Model, feeds: dict[str, Any]) -> Any:
    """All outputs, flattened and concatenated."""
    outputs = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    return np.concatenate([array.reshape(-1) for array in outputs])


def compare_rewrite(text: str, rewrite: Callable[[ir.Model], ir.Model]) -> tuple[Counter[str], Counter[str]]:
    """Check that a rewrite keeps the outputs and gives valid ONNX; returns the operators that it removed and added."""
    model = ir.from_proto(parser.parse_model(HEADER + text))
    before, feeds = Counter(node.op_type for node in model.graph), make_feeds(model)
    expected = run(model, feeds)
    rewritten = rewrite(model)
    np.testing.assert_allclose(run(rewritten, feeds), expected, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    after = Counter(node.op_type for node in rewritten.graph)
    return before - after, after - before


def test_sums_and_norms_become_one_operator() -> None:
    removed, added = compare_rewrite(NORMS, fuse_skip_norms)
    assert removed == {"Add": 2, "RMSNormalization": 2} and added == {"SkipSimplifiedLayerNormalization": 2}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float[b, s, 8] y", "float[s, 8] y"),  # the sum stretches one side
        ("float[b, s, 8] y", "float[1, s, 8] y"),
        ("sum, w)", "x, w)"),  # no sum
        ("1e-6> (sum", "1e-6, axis: int = 2> (sum"),  # the last axis by another name
        ("float[b, s, 8] x,", "float[?, s, 8] x,"),  # an unknown dim
    ],
)
def test_other_norms_stay(old: str, new: str) -> None:
    text = NORMS.replace(old, new).replace("(again, w)", "(z, w)")
    model = ir.from_proto(parser.parse_model(HEADER + text))
    assert {node.op_type for node in fuse_skip_norms(model).graph} == {"Add", "RMSNormalization"}


def test_a_sum_that_is_an_output_stays() -> None:
    text = NORMS.replace("=> (float[b, s, 8] out)", "=> (float[b, s, 8] out, float[b, s, 8] again)")
    text = text.replace(", float[b, s, 8] again,", ",")
    _, added = compare_rewrite(text, fuse_skip_norms)
    assert added == {"SkipSimplifiedLayerNormalization": 1}


def test_queries_are_rotated_without_transposing_them() -> None:
    removed, added = compare_rewrite(ROTARY, rotate_in_place)
    assert removed == {"Transpose": 2} and not added


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("back = Transpose <perm: ints = [0, 2, 1, 3]> (turned)", "back = Identity (first)"),
        ("out = Neg (flat)", "once = Neg (back)\n    more = Reshape (once, three)\n    out = Add (flat, more)"),
        (
            "first = Transpose <perm: ints = [0, 2, 1, 3]> (heads)",
            "first = Transpose <perm: ints = [0, 2, 3, 1]> (heads)",
        ),
    ],
)
def test_other_rotations_stay(old: str, new: str) -> None:
    model = ir.from_proto(parser.parse_model(HEADER + ROTARY.replace(old, new)))
    before = [node.op_type for node in model.graph]
    assert [node.op_type for node in rotate_in_place(model).graph] == before


def test_reshapes_that_change_nothing_go() -> None:
    removed, added = compare_rewrite(RESHAPES, drop_identity_reshapes)
    assert removed == {"Reshape": 1} and not added  # the other one's result is an output


@pytest.mark.parametrize("known", ["float[s, b, 8] same", "float[b, ?, 8] same"])
def test_other_reshapes_stay(known: str) -> None:
    model = ir.from_proto(parser.parse_model(HEADER + RESHAPES.replace("float[b, s, 8] same", known)))
    assert sum(node.op_type == "Reshape" for node in drop_identity_reshapes(model).graph) == 2


def test_guards_stay() -> None:
    model = ir.from_proto(parser.parse_model(HEADER + RESHAPES))
    next(node for node in model.graph if node.op_type == "Reshape").name = "guard: this must be so"
    assert sum(node.op_type == "Reshape" for node in drop_identity_reshapes(model).graph) == 2


def test_products_read_rows() -> None:
    model = ir.from_proto(parser.parse_model(HEADER + PRODUCTS))
    feeds = make_feeds(model)
    expected = run(model, feeds)
    for value in model.graph.inputs[2:]:
        value.name = f"{WEIGHTS}{value.name}"
    rewritten = use_gemm(model)
    assert [source_of(weight).transform for weight in weight_inputs(rewritten)] == [()] * 3
    feeds = {name: feeds[name.removeprefix(WEIGHTS)] for value in rewritten.graph.inputs if (name := value.name)}
    np.testing.assert_allclose(run(rewritten, feeds), expected, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    ops = Counter(node.op_type for node in rewritten.graph)
    assert ops["Gemm"] == 5 and ops["MatMul"] == 1 and not ops["Transpose"]  # z is stored as MatMul reads it
    assert ops["Reshape"] == 4 + 5  # x's products share its matrix
    assert (
        ops["Shape"] == 3
    )  # of x, of y, and of their sum, which may be larger; values computed from x alone have its dims
