"""The cache: exact in both forms, however it is filled; the shared form is written in place and grows seldom."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import GREEDY, Prepared, Qwen3VL
from qwen3vl_export.runtime.cache import BLOCK, JoinedCache, SharedCache, round_up_capacity
from qwen3vl_export.runtime.decoder import decode, embed, no_features
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.prompts.messages import as_messages

RNG = np.random.default_rng(41)
QUESTIONS = ("What is 2+3?", "Hi", "How many shapes are there, and which of them is the largest of all? " * 3)
FORMS = {"tiny_artifact": SharedCache, "tiny_portable_artifact": JoinedCache}


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest) -> Qwen3VL:
    loaded = Qwen3VL.load(request.getfixturevalue(request.param), threads=1)
    assert isinstance(loaded.empty_cache(1), FORMS[request.param])
    return loaded


@pytest.fixture(scope="module")
def shared(tiny_artifact: Path) -> Qwen3VL:
    return Qwen3VL.load(tiny_artifact, threads=1)


@pytest.fixture(scope="module")
def prepared(model: Qwen3VL) -> Prepared:
    return model.prepare([as_messages(question) for question in QUESTIONS])


def fill(model: Qwen3VL, prepared: Prepared, chunk: int | None) -> tuple[Any, Any]:
    return prefill(model.sessions, prepared, no_features(model.sessions), chunk)


def text_rows(model: Qwen3VL, tokens: int) -> tuple[Any, Any, Any]:
    """Wide rows of random text, the mask and the positions of one row."""
    ids = RNG.integers(0, 500, (1, tokens))
    positions = np.broadcast_to(np.arange(tokens), (3, 1, tokens))
    return embed(model.sessions, ids, no_features(model.sessions)), np.ones((1, tokens), np.int64), positions


@pytest.mark.parametrize("chunk", [3, 16, 10_000])
def test_padding_batch_and_chunks_leave_one_cache(model: Qwen3VL, prepared: Prepared, chunk: int) -> None:
    """Every key and value, and the logits, equal those of each row alone in one call."""
    logits, cache = fill(model, prepared, chunk)
    assert cache.length == prepared.input_ids.shape[1]
    alone = [fill(model, model.prepare([as_messages(question)]), None) for question in QUESTIONS]
    np.testing.assert_allclose(logits, np.concatenate([row_logits for row_logits, _ in alone]), atol=1e-4)
    rows = [row_cache.parts(np.ones((1, row_cache.length), np.int64)) for _, row_cache in alone]
    for actual, *expected in zip(cache.parts(prepared.attention_mask), *rows, strict=True):
        np.testing.assert_allclose(actual, np.concatenate(expected), atol=1e-4)


def test_padding_on_the_right_is_read_alike(shared: Qwen3VL) -> None:
    """The graph moves left padding; rows that begin at once stay where they are."""
    prepared = shared.prepare([as_messages(question) for question in QUESTIONS])
    counts = prepared.attention_mask.sum(axis=1)
    length = prepared.input_ids.shape[1]
    order = (np.arange(length) + (length - counts)[:, None]) % length
    mask = np.take_along_axis(prepared.attention_mask, order, 1)
    positions = np.take_along_axis(prepared.position_ids, order[None], 2)
    embeds = embed(shared.sessions, np.take_along_axis(prepared.input_ids, order, 1), no_features(shared.sessions))
    logits = decode(shared.sessions, embeds, mask, positions, shared.empty_cache(len(counts)))
    left, _ = fill(shared, prepared, None)
    np.testing.assert_allclose(logits[np.arange(len(counts)), counts - 1], left, atol=1e-4)


def test_forgetting_the_last_tokens_is_never_having_read_them(model: Qwen3VL) -> None:
    embeds, mask, positions = text_rows(model, 40)
    cache = model.empty_cache(1)
    decode(model.sessions, embeds[:, :30], mask[:, :30], positions[:, :, :30], cache)
    cache.truncate(20)
    resumed = decode(model.sessions, embeds[:, 20:], mask, positions[:, :, 20:], cache)
    whole = decode(model.sessions, embeds, mask, positions, model.empty_cache(1))
    np.testing.assert_allclose(resumed, whole[:, 20:], atol=1e-4)


def test_nothing_moves_while_there_is_room(shared: Qwen3VL) -> None:
    embeds, mask, positions = text_rows(shared, 24)
    cache = SharedCache.allocate(shared.sessions, 1, 24)
    addresses = [buffer.ctypes.data for buffer in cache.buffers]
    for token in range(24):
        window = slice(token, token + 1)
        before = [buffer[:, :, :token].copy() for buffer in cache.buffers]
        decode(shared.sessions, embeds[:, window], mask[:, : token + 1], positions[:, :, window], cache)
        for old, buffer in zip(before, cache.buffers, strict=True):
            np.testing.assert_array_equal(buffer[:, :, :token], old)
            assert buffer[:, :, token].any() and not buffer[:, :, token + 1 :].any()
    assert [buffer.ctypes.data for buffer in cache.buffers] == addresses


def test_growing_keeps_everything_and_is_seldom(shared: Qwen3VL) -> None:
    tokens = 3 * BLOCK + 10
    embeds, mask, positions = text_rows(shared, tokens)
    cache = SharedCache.allocate(shared.sessions, 1, 1)
    capacities = []
    for start in range(0, tokens, 57):
        window = slice(start, min(start + 57, tokens))
        logits = decode(shared.sessions, embeds[:, window], mask[:, : window.stop], positions[:, :, window], cache, 1)
        capacities.append(cache.capacity)
    whole = decode(shared.sessions, embeds, mask, positions, shared.empty_cache(1), 1)
    np.testing.assert_allclose(logits, whole, atol=1e-4)
    assert len(set(capacities)) <= 4
    assert capacities[-1] % BLOCK == 0 and capacities[-1] < 2 * tokens


@pytest.mark.parametrize(
    ("length", "limit", "capacity"), [(1, 4096, 256), (257, 4096, 512), (4000, 4090, 4090), (0, 9, 1)]
)
def test_capacities(length: int, limit: int, capacity: int) -> None:
    assert round_up_capacity(length, limit) == capacity


def test_a_mask_of_another_length_is_refused(model: Qwen3VL) -> None:
    embeds, mask, positions = text_rows(model, 4)
    with pytest.raises(InputError, match=r"attention_mask has shape \[1, 3\] for 4 tokens after 0\. Expected \[1, 4\]"):
        decode(model.sessions, embeds, mask[:, :3], positions, model.empty_cache(1))


def test_the_context_is_full(tiny_artifact: Path) -> None:
    artifact = open_artifact(tiny_artifact)
    facts = dataclasses.replace(artifact.manifest.facts, max_position_embeddings=10)
    small = Qwen3VL(Artifact(tiny_artifact, dataclasses.replace(artifact.manifest, facts=facts)))
    embeds, mask, positions = text_rows(small, 13)
    with pytest.raises(InputError, match="13 tokens, the context holds 10: 3 over"):
        decode(small.sessions, embeds, mask, positions, small.empty_cache(1))


def test_both_forms_answer_alike(tiny_artifact: Path, tiny_portable_artifact: Path) -> None:
    answers = []
    for path in (tiny_artifact, tiny_portable_artifact):
        loaded = Qwen3VL.load(path, threads=1)
        prepared = loaded.prepare([as_messages(question) for question in QUESTIONS])
        answers.append(loaded.generate_ids(prepared, 12, GREEDY, prefill_chunk=9))
    assert answers[0] == answers[1]
