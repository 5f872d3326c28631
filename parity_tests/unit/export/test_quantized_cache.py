"""Attention over a cache in 8 bits, against float64: what it stores, and that it reads what it stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import checker, parser

from qwen3vl_export.contract import ATTENTION_MASK, INPUTS_EMBEDS, past_name, present_name
from qwen3vl_export.exporter.quantize.cache import MANY, quantize_cache

HEADS, KEY_HEADS, SIZE = 4, 2, 16
WIDTHS = (HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE)  # of queries, keys and values
RNG = np.random.default_rng(53)
Array = NDArray[Any]

# The rows are queries, keys and values side by side.
ATTENTION = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
attention (
    {float}[b, s, 128] "{rows}", int64[b, t] "{mask}",
    {float}[b, 2, p, 16] "{past_key}", {float}[b, 2, p, 16] "{past_value}"
) => ({float}[b, s, 64] out, {float}[b, 2, t, 16] "{present_key}", {float}[b, 2, t, 16] "{present_value}") {{
    widths = Constant <value_ints: ints = [64, 32, 32]> ()
    q, k, v = Split <axis: int = 2> ("{rows}", widths)
    axis = Constant <value_ints: ints = [1]> ()
    counts = ReduceSum <keepdims: int = 0> ("{mask}", axis)
    one = Constant <value_int: int = 1> ()
    last_wide = Sub (counts, one)
    last = Cast <to: int = 6> (last_wide)
    length = Shape <start: int = 1, end: int = 2> ("{mask}")
    length_0 = Squeeze (length)
    total = Cast <to: int = 6> (length_0)
    out, "{present_key}", "{present_value}" = com.microsoft.GroupQueryAttention
        <num_heads: int = 4, kv_num_heads: int = 2, scale: float = 0.25>
        (q, k, v, "{past_key}", "{past_value}", last, total)
}}"""


def attention(dtype: str, scales: tuple[Array, Array]) -> ort.InferenceSession:
    names = {
        "rows": INPUTS_EMBEDS,
        "mask": ATTENTION_MASK,
        "past_key": past_name(0, "key"),
        "past_value": past_name(0, "value"),
        "present_key": present_name(0, "key"),
        "present_value": present_name(0, "value"),
    }
    model = ir.serde.from_proto(parser.parse_model(ATTENTION.format(float=dtype, **names)))
    proto = ir.serde.to_proto(quantize_cache(model, [scales]))
    checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def attend(query: Array, keys: Array, values: Array) -> Array:
    """Causal attention in float64: the last S of T tokens, [S, N * E], over [K, T, E]."""
    new, total = len(query), keys.shape[1]
    heads = []
    for head, rows in enumerate(query.reshape(new, HEADS, SIZE).transpose(1, 0, 2).astype(np.float64)):
        group = head // (HEADS // KEY_HEADS)
        scores = rows @ keys[group].T * SIZE**-0.5
        scores[np.arange(total) > np.arange(total - new, total)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ values[group])
    return np.stack(heads, axis=1).reshape(new, -1)


@pytest.mark.parametrize("calls", [(7, 1, MANY, 5), (MANY + 3, 1, 2, MANY)], ids=["few-first", "many-first"])
@pytest.mark.parametrize(("dtype", "error"), [("float", 2e-6), ("float16", 4e-3)])
def test_what_is_stored_is_rounded_and_what_is_read_was_stored(
    dtype: str, error: float, calls: tuple[int, ...]
) -> None:
    """Both branches in turn, new tokens several at a time; some keys and values exceed what 8 bits hold."""
    kind = np.float32 if dtype == "float" else np.float16
    keys, values = (RNG.uniform(0.005, 0.05, (1, KEY_HEADS, 1, SIZE)).astype(kind).astype(np.float32) for _ in "kv")
    session = attention(dtype, (keys, values))
    outputs = ["out", present_name(0, "key"), present_name(0, "value")]
    cache = [np.zeros((1, KEY_HEADS, 0, SIZE), np.int8)] * 2
    for new in calls:
        rows = RNG.standard_normal((1, new, sum(WIDTHS))).astype(kind)
        query, *parts = np.split(rows[0], np.cumsum(WIDTHS)[:-1], axis=1)
        before = cache
        feeds = {
            INPUTS_EMBEDS: rows,
            ATTENTION_MASK: np.ones((1, cache[0].shape[2] + new), np.int64),
            past_name(0, "key"): cache[0],
            past_name(0, "value"): cache[1],
        }
        out, *cache = session.run(outputs, feeds)
        for old, stored, part, scale in zip(before, cache, parts, (keys, values), strict=True):
            heads = part.reshape(new, KEY_HEADS, SIZE).transpose(1, 0, 2)
            expected = np.clip(np.rint(heads / scale[0].astype(kind)), -128, 127)
            np.testing.assert_array_equal(stored[0], np.concatenate([old[0], expected], axis=1))
        restored = [
            stored[0] * scale[0].astype(np.float64) for stored, scale in zip(cache, (keys, values), strict=True)
        ]
        np.testing.assert_allclose(out[0], attend(query, *restored), atol=error)
    assert (cache[0] == 127).any() and (cache[0] == -128).any(), "nothing was cut off"


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_head_that_calibration_saw_only_as_zero_does_not_poison_others(dtype: str) -> None:
    scales = (np.full((1, KEY_HEADS, 1, SIZE), 0.03, np.float32), np.zeros((1, KEY_HEADS, 1, SIZE), np.float32))
    session = attention(dtype, scales)
    kind = np.float32 if dtype == "float" else np.float16
    for new in (2, MANY):
        rows = RNG.standard_normal((1, new, sum(WIDTHS))).astype(kind)
        rows[:, :, -WIDTHS[2] :] = 0
        empty = np.zeros((1, KEY_HEADS, 0, SIZE), np.int8)
        feeds = {INPUTS_EMBEDS: rows, ATTENTION_MASK: np.ones((1, new), np.int64)}
        (out,) = session.run(["out"], {**feeds, past_name(0, "key"): empty, past_name(0, "value"): empty})
        assert not out.any()


def test_a_batch_of_prompts_is_stored_row_by_row() -> None:
    """Rows that end earlier, in both branches: their tokens are at the start, and nothing else is read."""
    scales = tuple(RNG.uniform(0.01, 0.05, (1, KEY_HEADS, 1, SIZE)).astype(np.float32) for _ in "kv")
    session = attention("float", (scales[0], scales[1]))
    outputs = ["out", present_name(0, "key"), present_name(0, "value")]
    for new in (MANY - 1, MANY + 1):
        rows = RNG.standard_normal((2, new, sum(WIDTHS))).astype(np.float32)
        mask = (np.arange(new) < np.array([[new], [5]])).astype(np.int64)
        empty = np.zeros((2, KEY_HEADS, 0, SIZE), np.int8)
        feeds = {INPUTS_EMBEDS: rows, ATTENTION_MASK: mask, past_name(0, "key"): empty, past_name(0, "value"): empty}
        together = session.run(outputs, feeds)
        for row, count in enumerate((new, 5)):
            alone = {name: array[row : row + 1] for name, array in feeds.items()}
            alone |= {INPUTS_EMBEDS: rows[row : row + 1, :count], ATTENTION_MASK: mask[row : row + 1, :count]}
            out, *stored = session.run(outputs, alone)
            np.testing.assert_allclose(together[0][row, :count], out[0], atol=2e-6)
            for whole, part in zip(together[1:], stored, strict=True):
                np.testing.assert_array_equal(whole[row, :, :count], part[0])
