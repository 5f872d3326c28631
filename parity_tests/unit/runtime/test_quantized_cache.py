"""A cache in 8 bits: what the operator stores, and one cache however it is filled, shared, grown and read again.

Integers may differ by one where sums in another order fall on the other side of a half. In the first layer this is
rare; every such step moves what further layers round, and logits, by a part of what 8 bits cost at all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qwen3vl_export.artifact import Artifact, Manifest, open_artifact
from qwen3vl_export.contract import DECODER, past_name, present_name
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.exporter.quantize.cache import MANY
from qwen3vl_export.runtime import GREEDY, Image, Qwen3VL
from qwen3vl_export.runtime.cache import BLOCK, SharedCache
from qwen3vl_export.runtime.conversation import Conversation
from qwen3vl_export.runtime.decoder import decode, embed, no_features
from qwen3vl_export.runtime.devices import PROVIDERS, Device
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.prompts.messages import as_messages
from qwen3vl_export.runtime.session import Sessions

RNG = np.random.default_rng(47)
QUESTIONS = ("What is 2+3?", "Hi", "How many shapes are there, and which of them is the largest of all? " * 3)
STEP = 0.1  # of logits that reach 12; 8 bits as such move them by 0.15
HEADS, KEY_HEADS, SIZE = 4, 2, 16
Array = NDArray[Any]


@pytest.fixture(scope="module")
def model(tiny_cache_artifact: Path) -> Qwen3VL:
    return Qwen3VL.load(tiny_cache_artifact, threads=1)


def attention(dtype: int) -> ort.InferenceSession:
    """One `GroupQueryAttention` over a cache in 8 bits."""
    cache = ["B", KEY_HEADS, "P", SIZE]
    shapes: dict[str, tuple[int, list[Any]]] = {
        "q": (dtype, ["B", "S", HEADS * SIZE]),
        "k": (dtype, ["B", "S", KEY_HEADS * SIZE]),
        "v": (dtype, ["B", "S", KEY_HEADS * SIZE]),
        "pk": (TensorProto.INT8, cache),
        "pv": (TensorProto.INT8, cache),
        "last": (TensorProto.INT32, ["B"]),
        "total": (TensorProto.INT32, []),
        "ks": (TensorProto.FLOAT, [1, KEY_HEADS, 1, SIZE]),
        "vs": (TensorProto.FLOAT, [1, KEY_HEADS, 1, SIZE]),
    }
    names = [*list(shapes)[:7], "", "", "", "", "", "ks", "vs"]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "nk", "nv"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KEY_HEADS,
        scale=SIZE**-0.5,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *kind) for name, kind in shapes.items()],
        [helper.make_tensor_value_info("y", dtype, shapes["q"][1])]
        + [helper.make_tensor_value_info(name, TensorProto.INT8, ["B", KEY_HEADS, "T", SIZE]) for name in ("nk", "nv")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


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


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-6), (np.float16, 2e-3)])
def test_the_operator_rounds_what_it_stores_and_reads_what_it_stored(dtype: Any, error: float) -> None:
    """Scale by channel, half to even, limits of int8; new tokens are read as integers too, several at a time."""
    session = attention(TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16)
    scales = {name: RNG.uniform(0.005, 0.05, (1, KEY_HEADS, 1, SIZE)).astype(np.float32) for name in ("ks", "vs")}
    cache = [np.zeros((1, KEY_HEADS, 0, SIZE), np.int8)] * 2
    computed: list[Array] = [np.zeros((KEY_HEADS, 0, SIZE))] * 2
    for new in (7, 1, 5):
        query, *parts = (
            RNG.standard_normal((1, new, heads * SIZE)).astype(dtype) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        )
        total = cache[0].shape[2] + new
        feeds = dict(zip(("q", "k", "v", "pk", "pv"), (query, *parts, *cache), strict=True))
        lengths = {"last": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
        y, *cache = session.run(None, {**feeds, **lengths, **scales})
        heads = [part[0].reshape(new, KEY_HEADS, SIZE).transpose(1, 0, 2).astype(np.float32) for part in parts]
        computed = [np.concatenate(pair, axis=1) for pair in zip(computed, heads, strict=True)]
        for stored, part, scale in zip(cache, computed, scales.values(), strict=True):
            np.testing.assert_array_equal(stored[0], np.clip(np.rint(part / scale[0]), -128, 127))
        restored = [
            stored[0] * scale[0].astype(np.float64) for stored, scale in zip(cache, scales.values(), strict=True)
        ]
        np.testing.assert_allclose(y[0], attend(query[0], *restored), atol=error)
    assert (cache[0] == 127).any() and (cache[0] == -128).any(), "nothing was cut off"


def test_it_takes_a_quarter_of_the_memory(model: Qwen3VL, tiny_artifact: Path) -> None:
    sizes = []
    for each in (model, Qwen3VL.load(tiny_artifact, threads=1)):
        cache = SharedCache.allocate(each.sessions, 2, 100)
        sizes.append(sum(buffer.nbytes for buffer in cache.buffers))
    assert 4 * sizes[0] == sizes[1]


def text_rows(model: Qwen3VL, tokens: int) -> tuple[Any, Any, Any]:
    """Wide rows of random text, the mask and the positions of one row."""
    ids = RNG.integers(0, 500, (1, tokens))
    positions = np.broadcast_to(np.arange(tokens), (3, 1, tokens))
    return embed(model.sessions, ids, no_features(model.sessions)), np.ones((1, tokens), np.int64), positions


def assert_one_cache(caches: Any, expected: Any) -> None:
    """Integers are equal but for some that are off by one: of the first layer's one in a thousand."""
    for index, (actual, truth) in enumerate(zip(caches, expected, strict=True)):
        assert actual.dtype == truth.dtype == np.int8
        steps = np.abs(actual.astype(np.int64) - truth)
        assert steps.max() <= 1 and (steps > 0).mean() < (1e-3 if index < 2 else 0.1)


@pytest.mark.parametrize("chunk", [3, MANY - 1, MANY, None])
def test_padding_batch_and_chunks_leave_one_cache(model: Qwen3VL, chunk: int | None) -> None:
    prepared = model.prepare([as_messages(question) for question in QUESTIONS])
    logits, cache = prefill(model.sessions, prepared, no_features(model.sessions), chunk)
    rows, alone = [], []
    for question in QUESTIONS:
        single = model.prepare([as_messages(question)])
        row_logits, row = prefill(model.sessions, single, no_features(model.sessions), None)
        alone.append(row_logits)
        rows.append(row.parts(single.attention_mask))
    np.testing.assert_allclose(logits, np.concatenate(alone), atol=STEP)
    assert_one_cache(cache.parts(prepared.attention_mask), [np.concatenate(parts) for parts in zip(*rows, strict=True)])


def test_growing_keeps_everything(model: Qwen3VL) -> None:
    tokens = 2 * BLOCK + 10
    embeds, mask, positions = text_rows(model, tokens)
    cache = SharedCache.allocate(model.sessions, 1, 1)
    for start in range(0, tokens, 57):
        window = slice(start, min(start + 57, tokens))
        logits = decode(model.sessions, embeds[:, window], mask[:, : window.stop], positions[:, :, window], cache, 1)
    assert cache.capacity > 2 * BLOCK
    whole = model.empty_cache(1)
    expected = decode(model.sessions, embeds, mask, positions, whole, 1)
    np.testing.assert_allclose(logits, expected, atol=STEP)
    assert_one_cache(cache.parts(mask), whole.parts(mask))


def test_a_second_turn_equals_reading_everything(model: Qwen3VL) -> None:
    picture = RNG.integers(0, 256, (64, 128, 3), np.uint8)
    question = {"role": "user", "content": [Image(picture), "What is this?"]}
    conversation = Conversation()
    first = model.prepare([as_messages([Image(picture), "What is this?"])])
    list(model.generate_steps(first, 4, GREEDY, conversation=conversation))
    turns = [question, {"role": "assistant", "content": "noise"}, {"role": "user", "content": ["What colour is it?"]}]
    again = model.prepare([turns])
    fresh = [step.logits for step in model.generate_steps(again, 6, GREEDY, stop_ids=frozenset())]
    resumed = model.generate_steps(again, 6, GREEDY, stop_ids=frozenset(), conversation=conversation)
    np.testing.assert_allclose(np.stack([step.logits for step in resumed]), np.stack(fresh), atol=STEP)


def test_the_manifest_says_what_is_stored(tiny_cache_artifact: Path, model: Qwen3VL) -> None:
    artifact = open_artifact(tiny_cache_artifact)
    entry = artifact.manifest.graphs[DECODER]
    for layer in range(artifact.manifest.facts.num_hidden_layers):
        for part in ("key", "value"):
            assert entry["inputs"][past_name(layer, part)]["dtype"] == "int8"
            assert entry["outputs"][present_name(layer, part)]["dtype"] == "int8"
    assert model.sessions.dtypes(DECODER)[past_name(0, "value")] == np.int8


@pytest.mark.parametrize("method", ["none", None])
def test_a_manifest_whose_recipe_says_otherwise_is_refused(tiny_cache_artifact: Path, method: str | None) -> None:
    manifest = open_artifact(tiny_cache_artifact).manifest
    quantization = {**manifest.recipe["quantization"], "cache": {"method": method}}
    if method is None:
        del quantization["cache"]
    text = dataclasses.replace(manifest, recipe={**manifest.recipe, "quantization": quantization}).to_json()
    with pytest.raises(ArtifactError, match="inputs of decoder_model_merged are not those this version declares"):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_device_that_is_not_known_to_read_it_is_refused(tiny_cache_artifact: Path, name: str) -> None:
    artifact: Artifact = open_artifact(tiny_cache_artifact)
    with pytest.raises(InputError, match=rf"stored in 8 bits, which {name} is not known to read\. Run it on the CPU"):
        Sessions(artifact, device=Device(name, PROVIDERS[name]))
