"""What follows from integers is computed in float64, equals float32 to the bit, and leaves activations alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from qwen3vl_export.exporter.rewrites.host import compute_on_host

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
RNG = np.random.default_rng(3)
POSITIONS = np.concatenate([np.arange(300), RNG.integers(0, 1 << 24, 4000)])

# Interpolation coordinates and rotary angles, as the graphs compute them.
ARITHMETIC = """g (int64[n] p, float[n] x) => (float[n, 2] coordinates, float[n, 4] angles, int64[n] taps, float[n] y)
<float[1, 4] f = {1.0, 0.7498942, 0.31622776, 0.0031622776}, float side = {47.0}, float size = {93.0},
 float[n] q, float[n] scaled, float[n] source, float[n] floor, float[n] rest, float[n] again, float[n, 1] column,
 float[n, 1] other, float[n, 1] two_d>
{
    q = Cast <to = 1> (p)
    scaled = Mul (q, side)
    source = Div (scaled, size)
    floor = Floor (source)
    taps = Cast <to = 7> (floor)
    rest = Sub (source, floor)
    again = Add (rest, scaled)
    last = Constant <value_ints: ints = [1]> ()
    column = Unsqueeze (rest, last)
    other = Unsqueeze (again, last)
    coordinates = Concat <axis = 1> (column, other)
    two_d = Unsqueeze (q, last)
    angles = Mul (two_d, f)
    y = Mul (x, rest)
}"""
WAVES = """g (int64[n] p) => ({dtype}[n, 2] cosines, {dtype}[n, 2] sines)
<float[2] f = {{1.0, 0.7498942}}, float[n, 1] q, float[n, 2] angles, float[n, 2] c, float[n, 2] s,
 int64[n, 1] column>
{{
    last = Constant <value_ints: ints = [1]> ()
    column = Unsqueeze (p, last)
    q = Cast <to = 1> (column)
    angles = Mul (q, f)
    c = Cos (angles)
    s = Sin (angles)
    cosines = {widen} (c)
    sines = {widen} (s)
}}"""


def parse(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(HEADER + text))


def run(model: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    outputs: list[Any] = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    return outputs


def float_arithmetic(model: ir.Model) -> set[str]:
    """The operators, beside casts, that compute in float32."""
    return {
        node.op_type
        for node in model.graph
        if node.op_type != "Cast" and ir.DataType.FLOAT in {value.dtype for value in node.outputs}
    }


def test_arithmetic_on_positions_equals_float32_to_the_bit() -> None:
    feeds = {"p": POSITIONS, "x": RNG.standard_normal(len(POSITIONS), np.float32)}
    expected = run(parse(ARITHMETIC), feeds)
    rewritten = compute_on_host(parse(ARITHMETIC))
    assert float_arithmetic(rewritten) == {"Mul"}  # of an activation
    for array, other in zip(run(rewritten, feeds), expected, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(("dtype", "widen"), [("float", "Identity"), ("float16", "Cast <to = 10>")])
def test_sines_and_cosines_are_those_of_the_angles_in_float32(dtype: str, widen: str) -> None:
    """Of angles up to 2^24, to half a digit of float32; float16 tables are rounded from these."""
    rewritten = compute_on_host(parse(WAVES.format(dtype=dtype, widen=widen)))
    assert not {"Cos", "Mul"} & float_arithmetic(rewritten)
    angles = POSITIONS[:, None].astype(np.float32) * np.array([1.0, 0.7498942], np.float32)
    for array, function in zip(run(rewritten, {"p": POSITIONS}), (np.cos, np.sin), strict=True):
        digit = np.finfo(np.float32).eps if dtype == "float" else np.finfo(np.float16).eps
        np.testing.assert_allclose(array, function(angles.astype(np.float64)), rtol=digit / 2, atol=4e-9)


def test_what_no_integer_decides_stays() -> None:
    text = """g (float[n] x, int64[1] s) => (float[m] y, int64[k] z)
    <float[n] a, float two = {2.0}>
    {
        a = Mul (x, two)
        b = Cos (a)
        y = Reshape (b, s)
        z = Shape (b)
    }"""
    before, after = parse(text), compute_on_host(parse(text))
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
    assert all(value.dtype != ir.DataType.DOUBLE for node in after.graph for value in node.outputs)


def test_an_unknown_operator_ends_it() -> None:
    """It keeps its float32 inputs, and what reads its results is computed where they are."""
    text = """g (int64[n] p) => (float[n] y) <float[n] q, float[n] a, float[n] b, float two = {2.0}>
    {
        q = Cast <to = 1> (p)
        a = Mul (q, two)
        b = Softmax (a)
        y = Mul (b, two)
    }"""
    rewritten = compute_on_host(parse(text))
    assert float_arithmetic(rewritten) == {"Softmax", "Mul"}
    feeds = {"p": np.arange(9)}
    np.testing.assert_array_equal(run(rewritten, feeds)[0], run(parse(text), feeds)[0])
