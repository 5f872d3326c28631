"""A cache in 8 bits is one cache however it is filled, grown and read again, and is refused where it cannot be read.

Integers may differ by one where sums in another order fall on the other side of a half. In the first layer this is
rare; every such step moves what further layers round, and logits, by a part of what 8 bits cost at all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.contract import DECODER, past_name, present_name
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.exporter.quantize.cache import MANY
from qwen3vl_export.manifest import Manifest
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


@pytest.fixture(scope="module")
def model(tiny_cache_artifact: Path) -> Qwen3VL:
    return Qwen3VL.load(tiny_cache_artifact, threads=1)


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
