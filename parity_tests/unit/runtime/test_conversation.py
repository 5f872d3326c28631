"""Building on what was read: the same logits and text as reading everything anew, and only the new tokens read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Video
from qwen3vl_export.runtime import decoder as decoder_module
from qwen3vl_export.runtime import generate as generate_module
from qwen3vl_export.runtime.conversation import Conversation, FeatureCache, Span, picture_digests, picture_spans
from qwen3vl_export.runtime.prompts.messages import as_messages

RNG = np.random.default_rng(43)
WIDE, OTHER, TALL = (RNG.integers(0, 256, shape, np.uint8) for shape in ((64, 128, 3), (64, 128, 3), (128, 64, 3)))
CLIP = [np.full((64, 64, 3), value, np.uint8) for value in (0, 60, 120, 180, 240, 255)]
NEVER = frozenset[int]()


@pytest.fixture(params=["tiny_artifact", "tiny_portable_artifact"])
def model(request: pytest.FixtureRequest) -> Qwen3VL:
    return Qwen3VL.load(request.getfixturevalue(request.param), threads=1)


def turns(first: list[Any], answer: str, *second: Any) -> list[dict[str, Any]]:
    question = {"role": "user", "content": first}
    return [question, {"role": "assistant", "content": answer}, {"role": "user", "content": list(second)}]


def run_steps(model: Qwen3VL, prepared: Prepared, conversation: Conversation | None, count: int = 8) -> Any:
    return list(model.generate_steps(prepared, count, GREEDY, stop_ids=NEVER, conversation=conversation))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each call of the decoder read."""
    counts: list[int] = []

    def count_and_decode(sessions: Any, inputs_embeds: Any, *arguments: Any) -> Any:
        counts.append(inputs_embeds.shape[1])
        return decoder_module.decode(sessions, inputs_embeds, *arguments)

    monkeypatch.setattr(generate_module, "decode", count_and_decode)
    yield counts


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["What is 2+3?"], ["And 3+3?"]),
        ([Image(WIDE), "What is this?"], ["What colour is it?"]),
        ([Image(WIDE), "What is this?"], [Image(TALL), "And this?"]),
        ([Video(CLIP), "What changes?"], ["How many times?"]),
        ([Video(CLIP), Image(TALL), "What changes?"], [Video(CLIP[:4]), "And here?"]),
    ],
)
def test_a_second_turn_equals_reading_everything(
    model: Qwen3VL, first: list[Any], second: list[Any], read: list[int]
) -> None:
    conversation = Conversation()
    first_turn = model.prepare([as_messages(first)])
    answer = model.tokenizer.decode([int(step.tokens[0]) for step in run_steps(model, first_turn, conversation)])
    again = model.prepare([turns(first, answer, *second)])
    fresh = run_steps(model, again, None)
    read.clear()
    resumed = run_steps(model, again, conversation)
    assert read[0] <= again.input_ids.shape[1] - first_turn.input_ids.shape[1], "the first turn was read again"
    np.testing.assert_allclose(
        np.stack([step.logits for step in resumed]), np.stack([step.logits for step in fresh]), atol=1e-4
    )
    assert [step.tokens.tolist() for step in resumed] == [step.tokens.tolist() for step in fresh]


@pytest.mark.parametrize("change", [OTHER, TALL])
def test_another_picture_in_the_same_place_is_read(model: Qwen3VL, change: Any, read: list[int]) -> None:
    """OTHER has the very tokens of WIDE, and only other pixels."""
    conversation = Conversation()
    run_steps(model, model.prepare([as_messages(["Look:", Image(WIDE), "What is this?"])]), conversation)
    prepared = model.prepare([as_messages(["Look:", Image(change), "What is this?"])])
    read.clear()
    resumed = run_steps(model, prepared, conversation)
    span = picture_spans(prepared, picture_digests(prepared), model.facts)[0]
    assert read[0] == prepared.input_ids.shape[1] - span.start
    fresh = run_steps(model, prepared, None)
    np.testing.assert_allclose(resumed[0].logits, fresh[0].logits, atol=1e-4)


def test_the_same_question_reads_one_token(model: Qwen3VL, read: list[int]) -> None:
    prepared = model.prepare([as_messages([Image(WIDE), "What is this?"])])
    conversation = Conversation()
    first = run_steps(model, prepared, conversation)
    read.clear()
    again = run_steps(model, prepared, conversation)
    assert read[0] == 1
    np.testing.assert_allclose(again[-1].logits, first[-1].logits, atol=1e-4)


def test_an_answer_cut_short_is_built_on(model: Qwen3VL, read: list[int]) -> None:
    prepared = model.prepare([as_messages([Image(WIDE), "What is this?"])])
    conversation = Conversation()
    answer = model.generate_steps(prepared, 8, GREEDY, stop_ids=NEVER, conversation=conversation)
    next(answer), next(answer)
    answer.close()  # type: ignore[attr-defined]
    read.clear()
    again = run_steps(model, prepared, conversation)
    assert read[0] == 1
    np.testing.assert_allclose(again[0].logits, run_steps(model, prepared, None)[0].logits, atol=1e-4)


def test_two_answers_in_progress_do_not_share_a_cache(model: Qwen3VL) -> None:
    prepared = [model.prepare([as_messages([Image(picture), "What is this?"])]) for picture in (WIDE, TALL)]
    alone = [[step.logits for step in run_steps(model, prompt, None)] for prompt in prepared]
    conversation = Conversation()
    both = [model.generate_steps(prompt, 8, GREEDY, stop_ids=NEVER, conversation=conversation) for prompt in prepared]
    woven = [[step.logits for step in pair] for pair in zip(*both, strict=True)]
    for index, logits in enumerate(alone):
        np.testing.assert_allclose(np.stack([pair[index] for pair in woven]), np.stack(logits), atol=1e-4)


def test_streaming_builds_on_the_turn_before(model: Qwen3VL, read: list[int]) -> None:
    content = [Image(WIDE), "What is this?"]
    answer = model.generate(content, max_new_tokens=6, temperature=0)
    messages = turns(content, answer, "Which colour?")
    read.clear()
    resumed = model.generate(messages, max_new_tokens=6, temperature=0)
    assert read[0] < 24
    model.conversation.forget()
    read.clear()
    assert model.generate(messages, max_new_tokens=6, temperature=0) == resumed
    assert read[0] == model.prepare([messages]).input_ids.shape[1]


def test_a_picture_seen_lately_is_not_encoded_again(model: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[list[int]]] = []
    encode = model.encode_images

    def note_and_encode(pixel_values: Any, grid: Any) -> Any:
        encoded.append(grid.tolist())
        return encode(pixel_values, grid)

    monkeypatch.setattr(model, "encode_images", note_and_encode)
    for pictures in ((WIDE,), (TALL, WIDE), (WIDE, WIDE, OTHER), (WIDE,)):
        content = [*(Image(picture) for picture in pictures), "What is this?"]
        prepared = model.prepare([as_messages(content)])
        logits = run_steps(model, prepared, None, 1)[0].logits
        features = encode(prepared.pixel_values, prepared.image_grid_thw)
        cached = model.features(prepared, picture_digests(prepared))
        np.testing.assert_allclose(cached, features, atol=1e-5)
        assert np.isfinite(logits).all()
    assert [len(grids) for grids in encoded] == [1, 1, 1]


def test_features_kept_are_bounded_in_bytes() -> None:
    cache = FeatureCache(limit=1000)
    rows = np.zeros((25, 4), np.float32)  # 400 bytes
    for name in (b"a", b"b"):
        cache.put(name, rows)
    assert cache.get(b"a") is not None
    cache.put(b"c", rows)
    assert cache.get(b"b") is None and cache.get(b"a") is not None and cache.nbytes == 800
    cache.put(b"huge", np.zeros(1000, np.float32))
    assert cache.get(b"huge") is None and cache.nbytes == 800


class FakeCache:
    def __init__(self, length: int) -> None:
        self.length = length

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)


def common(ids: list[int], spans: tuple[Span, ...], again: list[int], spans_again: tuple[Span, ...]) -> int:
    conversation = Conversation()
    conversation.keep(FakeCache(len(ids)), np.array(ids), spans)  # type: ignore[arg-type]
    cache = conversation.take(np.array(again), spans_again)
    return 0 if cache is None else cache.length


A, B = b"a", b"b"


@pytest.mark.parametrize(
    ("ids", "spans", "again", "spans_again", "length"),
    [
        ([1, 2, 3], (), [1, 2, 3, 4], (), 3),
        ([1, 2, 3], (), [1, 2, 3], (), 2),
        ([1, 2, 3], (), [9, 2, 3], (), 0),
        ([1, 7, 7, 2], (Span(1, 3, A),), [1, 7, 7, 2, 5], (Span(1, 3, A),), 4),
        ([1, 7, 7, 2], (Span(1, 3, A),), [1, 7, 7, 2, 5], (Span(1, 3, B),), 1),
        ([1, 7, 7, 2], (Span(1, 3, A),), [1, 7, 7, 7, 5], (Span(1, 4, B),), 1),
        ([1, 7, 7, 7], (Span(1, 4, A),), [1, 7, 7, 2, 5], (Span(1, 3, A),), 1),
        ([7, 7, 2], (Span(0, 2, A),), [7, 7, 2, 5], (Span(0, 2, B),), 0),
        ([1, 7, 2, 7, 3], (Span(1, 2, A), Span(3, 4, B)), [1, 7, 2, 7, 3], (Span(1, 2, A), Span(3, 4, A)), 3),
        ([1, 7, 4, 7, 3, 2], (Span(1, 4, A),), [1, 7, 4, 7, 9, 2], (Span(1, 2, B), Span(3, 4, A)), 1),
    ],
)
def test_the_common_prefix_never_ends_inside_a_picture(
    ids: list[int], spans: tuple[Span, ...], again: list[int], spans_again: tuple[Span, ...], length: int
) -> None:
    assert common(ids, spans, again, spans_again) == length


def test_a_picture_read_in_part_is_forgotten() -> None:
    conversation = Conversation()
    conversation.keep(FakeCache(3), np.array([1, 7, 7, 7, 2]), (Span(1, 4, A),))  # type: ignore[arg-type]
    cache = conversation.take(np.array([1, 7, 7, 7, 2]), (Span(1, 4, A),))
    assert cache is not None and cache.length == 1


def test_other_grids_of_the_same_patches_are_other_pictures(model: Qwen3VL) -> None:
    prepared = model.prepare([as_messages([Image(WIDE), "?"])])
    transposed = dataclasses.replace(prepared, image_grid_thw=prepared.image_grid_thw[:, [0, 2, 1]])
    assert picture_digests(prepared) != picture_digests(transposed)
