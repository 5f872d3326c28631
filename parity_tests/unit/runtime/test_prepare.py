"""Conversations to arrays: padding, order of pictures, fixed sizes, and what cannot be prepared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen3vl_export.errors import InputError
from qwen3vl_export.manifest import Encoder
from qwen3vl_export.runtime import Image, Video
from qwen3vl_export.runtime.encoders import BUCKET_RULE
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts.messages import as_messages

from ...fixtures.paths import TINY
from ...fixtures.standin import artifact_without_graphs, tiny_facts

FACTS = tiny_facts()
PREPARER = Preparer(artifact_without_graphs())
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
RNG = np.random.default_rng(11)


def noise(height: int, width: int) -> np.typing.NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def test_one_image() -> None:
    picture = noise(100, 150)
    prepared = PREPARER([as_messages([Image(picture), "What is this?"])])
    expected = Qwen2VLImageProcessorPil.from_pretrained(TINY)(images=[picture], return_tensors="np")
    np.testing.assert_array_equal(prepared.pixel_values, expected["pixel_values"])
    np.testing.assert_array_equal(prepared.image_grid_thw, expected["image_grid_thw"])
    tokens = int(expected["image_grid_thw"].prod()) // 4
    text = (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prepared.texts == (text,)
    assert prepared.input_ids.tolist() == [TOKENIZER(text)["input_ids"]]
    assert prepared.attention_mask.min() == 1
    assert prepared.is_video == (False,)


def test_text_alone() -> None:
    prepared = PREPARER([as_messages("What is 2+3?")])
    assert prepared.pixel_values.shape == (0, FACTS.patch_dim)
    assert prepared.image_grid_thw.shape == (0, 3)
    assert prepared.rope_deltas.tolist() == [[0]]


def test_a_batch_is_padded_on_the_left() -> None:
    conversations = [
        as_messages("Hi"),
        as_messages([Image(noise(64, 64)), Video([noise(64, 96) for _ in range(3)], 1), Image(noise(96, 64)), "What?"]),
    ]
    prepared = PREPARER(conversations)
    alone = PREPARER(conversations[:1])
    length = alone.input_ids.shape[1]
    assert prepared.attention_mask[0, :-length].max() == 0 and prepared.attention_mask[0, -length:].min() == 1
    np.testing.assert_array_equal(prepared.input_ids[0, -length:], alone.input_ids[0])
    assert set(prepared.input_ids[0, :-length]) == {TOKENIZER.pad_token_id}
    assert prepared.image_grid_thw.tolist() == [[1, 4, 4], [2, 4, 6], [1, 6, 4]]
    assert prepared.is_video == (False, True, False)
    assert "<0.5 seconds><|vision_start|>" in prepared.texts[1] and "<2.0 seconds>" in prepared.texts[1]


def test_a_fixed_artifact_gets_its_grid() -> None:
    preparer = Preparer(artifact_without_graphs(encoders=(Encoder("fixed", (8, 6)),), encoder_rule="fixed"))
    prepared = preparer([as_messages([Image(noise(300, 40)), Video([noise(20, 90)] * 4), "What?"])])
    assert prepared.image_grid_thw.tolist() == [[1, 8, 6], [2, 8, 6]]
    assert prepared.pixel_values.shape == (3 * 48, FACTS.patch_dim)


def test_buckets_follow_the_aspect() -> None:
    buckets = tuple(Encoder(f"b{h}x{w}", (h, w)) for h, w in ((8, 8), (16, 16), (8, 16)))
    preparer = Preparer(artifact_without_graphs(encoders=buckets, encoder_rule=BUCKET_RULE))
    sizes = [(64, 64), (200, 200), (100, 250)]
    prepared = preparer([as_messages([*(Image(noise(*size)) for size in sizes), "What?"])])
    assert prepared.image_grid_thw.tolist() == [[1, 8, 8], [1, 16, 16], [1, 8, 16]]


def test_a_prompt_longer_than_the_context() -> None:
    facts = dataclasses.replace(FACTS, max_position_embeddings=60)
    preparer = Preparer(artifact_without_graphs(facts=facts))
    conversation = as_messages([Image(noise(256, 256)), "What is this?"])
    over = PREPARER([conversation]).input_ids.shape[1] - 60
    with pytest.raises(InputError, match=rf"the context holds 60: {over} over\. Shorten the text, or use fewer"):
        preparer([as_messages("Hi"), conversation])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([Image(noise(2, 402)), "?"], "one side is 201 times the other"),
        ([Image("nowhere.png"), "?"], r"nowhere\.png: no such image file"),
        ([Video([]), "?"], "a video of 0 frames"),
        ([Video([noise(64, 64)]), "?"], "a video of 1 frames"),
        ([Video([noise(64, 64), noise(64, 96)]), "?"], "whose frames have sizes"),
        ([Video([noise(64, 64)] * 2, 0), "?"], "a video of 0 frames per second"),
    ],
)
def test_what_cannot_be_prepared(content: list[Image | Video | str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PREPARER([as_messages(content)])


def test_no_conversation() -> None:
    with pytest.raises(InputError, match="no conversation"):
        PREPARER([])


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(text: str) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(PREPARER.tokenizer, "encode", encode)
    with pytest.raises(InputError, match=r"characters, more than the 4096 tokens of the context can hold\. Shorten"):
        PREPARER([as_messages("x" * 2 * 4096 * (PREPARER.tokenizer.longest_token + 1))])


@pytest.mark.parametrize("text", ["\u03b1\u0313\u0300\u0345", "\u1f82", "<|vision_start|>", " " * 64, "\U0001f600"])
def test_a_text_whose_tokens_fit_is_never_too_long(text: str) -> None:
    tokens = len(PREPARER.tokenizer.encode(text * 100))
    PREPARER.check_size(text * (100 * FACTS.max_position_embeddings // tokens))
