"""Inputs of embedding models and rerankers, and what becomes of the decoder's output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoTokenizer

from qwen3vl_export.contract import RERANKER, Facts
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import FrameChoice, Image, Picture, PixelBudget, Qwen3VL, Video, retrieval
from qwen3vl_export.runtime.heads import check_dimensions, embeddings_of, scores_of
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.retrieval import (
    FRAMES,
    embedding_conversation,
    ordered,
    reranker_conversation,
    sampled,
    shorten_embedding,
    shorten_pair,
)

from ...fixtures.paths import TINY
from ...fixtures.standin import artifact_without_graphs

PREPARER = Preparer(artifact_without_graphs(TINY))
FACTS: Facts = PREPARER.facts
RNG = np.random.default_rng(26)
PICTURE = PIL.Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8))
IMAGE, CLIP = Image(PICTURE), Video([PICTURE] * 4)
TURN = "<|im_end|>\n<|im_start|>assistant\n"


def text_of(conversation: Any) -> str:
    return PREPARER([conversation]).texts[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a cat", ["a cat"]),
        (IMAGE, [IMAGE]),
        ([], ["NULL"]),
        ({}, ["NULL"]),
        ({"text": None, "image": []}, ["NULL"]),
        ({"text": ["a", "b"]}, ["a", "b"]),
        (["a", IMAGE, "b"], [IMAGE, "a", "b"]),
        ({"text": "a", "image": PICTURE}, [IMAGE, "a"]),
        ({"image": [PICTURE, IMAGE], "text": "a"}, [IMAGE, IMAGE, "a"]),
        ({"type": "image", "image": PICTURE}, [IMAGE]),
        ([{"type": "text", "text": "a"}, {"type": "image", "image": PICTURE}], [IMAGE, "a"]),
        ({"video": "clip.mp4"}, [Video("clip.mp4", choice=FRAMES, budget=PixelBudget())]),
        ({"video": ["a.mp4", "b.mp4"]}, [Video(f"{n}.mp4", choice=FRAMES, budget=PixelBudget()) for n in "ab"]),
    ],
)
def test_every_form_of_an_input_is_read(given: Any, expected: list[Any]) -> None:
    assert ordered(given, FACTS) == expected


@pytest.mark.parametrize("frames", [[PICTURE] * 4, ["a.png", "b.png?x=1"], [IMAGE, IMAGE]])
def test_a_list_that_begins_with_a_picture_is_a_video_of_frames(frames: list[Any]) -> None:
    (video,) = ordered({"video": frames}, FACTS)
    assert isinstance(video, Video) and len(video.source) == len(frames) and video.is_list


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "an input is a int"),
        ({"txt": "a"}, "unknown key 'txt'"),
        ({"text": 7}, "text"),
        ({"text": ["a", 7]}, "the text of an input is a int"),
        ([["a"]], "a message holds a list"),
    ],
)
def test_other_forms_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ordered(given, FACTS)


def test_videos_come_before_images_and_texts() -> None:
    kinds = [type(piece) for piece in ordered(["a", IMAGE, CLIP], FACTS)]
    assert kinds == [Video, Image, str]


def test_an_embedding_prompt() -> None:
    text = text_of(embedding_conversation("a cat", None, FACTS))
    assert text == f"<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\na cat{TURN}"


@pytest.mark.parametrize(
    ("instruction", "system"),
    [
        (None, "Represent the user's input."),
        ("  ", "Represent the user's input."),
        (" Find it ", "Find it."),
        ("Find it!", "Find it!"),
        ("找到它。", "找到它。"),
        ("a + b", "a + b."),
        ("cost: $", "cost: $."),
    ],
)
def test_an_instruction_ends_with_punctuation(instruction: str | None, system: str) -> None:
    assert embedding_conversation("a", instruction, FACTS)[0]["content"] == [system]
    given = {"text": "a", "instruction": instruction}
    assert embedding_conversation(given, None, FACTS)[0]["content"] == [system]


def test_the_instruction_of_an_input_goes_before_the_common_one() -> None:
    given = {"text": "a", "instruction": "mine"}
    assert embedding_conversation(given, "common", FACTS)[0]["content"] == ["mine."]
    assert given == {"text": "a", "instruction": "mine"}


def test_a_reranker_prompt() -> None:
    text = text_of(reranker_conversation("a cat", ["a dog", "on a sofa"], None, FACTS))
    assert text == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "search query, retrieve relevant candidates that answer the query.<Query>:a cat\n<Document>:a dogon a sofa"
        f"{TURN}"
    )
    assert "<Instruct>: Find it<Query>:NULL\n" in text_of(reranker_conversation([], "a", "Find it", FACTS))


def test_the_pictures_of_a_query_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Qwen3VL(artifact_without_graphs(TINY, facts=replace(FACTS, head=RERANKER)))
    given: list[Any] = []

    def last_outputs(conversations: list[Any], *_: Any) -> np.ndarray:
        given.extend(conversation[1]["content"] for conversation in conversations)
        return np.zeros((len(conversations), 2), np.float32)

    monkeypatch.setattr(model, "last_outputs", last_outputs)
    assert model.rerank(["a cat", IMAGE], ["a", "b"]).tolist() == [0.5, 0.5]
    assert given[0][2] is given[1][2] and isinstance(given[0][2], Picture)
    assert [content[3:] for content in given] == [["a cat", "\n<Document>:", text] for text in "ab"]


def test_a_list_of_frames_is_thinned_and_has_an_even_number() -> None:
    frames = [PIL.Image.new("L", (1, 1), index) for index in range(100)]
    long = sampled(Video(frames), FACTS)
    assert [frame.getpixel((0, 0)) for frame in long.source] == np.linspace(0, 99, 64, dtype=int).tolist()
    assert long.positions == tuple(range(64)) and long.budget == PixelBudget(total_pixels=7680 * 32 * 32)
    odd = sampled(Video(frames[:5]), FACTS)
    assert [frame.getpixel((0, 0)) for frame in odd.source] == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "options", [{"sample_fps": 4.0}, {"choice": FrameChoice(nframes=2)}, {"budget": PixelBudget()}]
)
def test_a_video_with_settings_keeps_them(options: dict[str, Any]) -> None:
    video = Video("clip.mp4", **options)
    assert sampled(video, FACTS) == video


def test_a_long_input_is_cut_at_its_end_but_not_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "EMBEDDING_TOKENS", 40)
    whole = PREPARER([embedding_conversation("a " * 100, None, FACTS)]).input_ids[0]
    cut = PREPARER([embedding_conversation("a " * 100, None, FACTS)], False, shorten_embedding).input_ids[0]
    assert len(whole) > 100 and cut.tolist() == whole[:40].tolist()
    with pytest.raises(InputError, match="40 are read, which cuts its pictures"):
        PREPARER([embedding_conversation([IMAGE] * 8, None, FACTS)], False, shorten_embedding)


def test_special_tokens_are_those_of_transformers() -> None:
    assert PREPARER.tokenizer.special_ids == set(AutoTokenizer.from_pretrained(TINY).all_special_ids)


def test_a_long_pair_keeps_special_tokens_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "RERANKER_TOKENS", 6)
    special = {90, 91}
    assert shorten_pair([1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15], special) == [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15]
    assert shorten_pair([90, 1, 2, 3, 4, 5, 91, 6, 91, 11, 90, 13, 14, 15], special) == (
        [90, 1, 2, 3, 91, 91, 11, 90, 13, 14, 15]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dimensions", [1, 7, 16])
def test_embeddings_are_those_of_torch(dtype: Any, dimensions: int) -> None:
    hidden = (RNG.standard_normal((5, 16)) * 300).astype(dtype)
    truth = torch.nn.functional.normalize(torch.from_numpy(hidden.astype(np.float32))[:, :dimensions], dim=-1)
    assert np.abs(embeddings_of(hidden, dimensions, True) - truth.numpy()).max() < 1e-6
    assert (embeddings_of(hidden, dimensions, False) == hidden[:, :dimensions]).all()
    assert (embeddings_of(np.zeros((1, 16), dtype), dimensions, True) == 0).all()


def test_scores_are_those_of_torch_at_any_distance() -> None:
    logits = np.array([[0, 0], [3, 1], [1, 3], [500, -500], [-500, 500], [1e6, 1e6]], np.float32)
    truth = torch.sigmoid(torch.from_numpy(logits[:, 0] - logits[:, 1])).numpy()
    assert np.abs(scores_of(logits) - truth).max() < 1e-7


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    for compute in (scores_of, lambda values: embeddings_of(values, 2, True)):
        with pytest.raises(ArtifactError, match="NaN or infinity"):
            compute(np.array([[0, bad]], np.float32))


@pytest.mark.parametrize("dimensions", [0, -1, 17])
def test_dimensions_that_there_are_not_are_refused(dimensions: int) -> None:
    with pytest.raises(InputError, match=rf"dimensions is {dimensions}\. Use 1 to 16"):
        check_dimensions(dimensions, 16)


def test_a_model_that_answers_embeds_nothing(tiny_artifact: Path) -> None:
    model = Qwen3VL.load(tiny_artifact, check=False)
    for call in (lambda: model.embed(["a"]), lambda: model.rerank("a", ["b"])):
        with pytest.raises(InputError, match=r"is a model for answers, by stream\(\)"):
            call()
