"""Prompts equal transformers' processor, id for id, with the tokens and the prompts of both published checkpoints."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import Image, Video
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts.messages import Message

from ...fixtures.paths import TEMPLATES, TINY
from ...fixtures.standin import artifact_without_graphs, tiny_facts
from ...fixtures.video_reference import whole_processor
from ...fixtures.videos import moving_frames

CAT, DOG = np.full((64, 96, 3), 90, np.uint8), np.full((130, 70, 3), 30, np.uint8)
CLIP = moving_frames(7)
RATE = 3.0
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "<b> é", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time"}},
]
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich", "days": [1, 2.5]}}},
    {"id": "2", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET"}'}},
]
QUESTION = {"type": "text", "text": "What is this? é 你好 🙂 <b>"}
PICTURE, OTHER, VIDEO = (
    {"type": "image", "image": CAT},
    {"type": "image", "image": DOG},
    {"type": "video", "video": CLIP},
)


def user(*items: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(items)}


def answer(text: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


SYSTEM = {"role": "system", "content": "Be short."}
ITEMS = {"role": "system", "content": [{"type": "text", "text": "Be"}, {"text": " short."}]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "1", "content": '{"sky": "clear"}'}
PHOTOS = {**RESULT, "content": [QUESTION, PICTURE, VIDEO]}
ASK = user(QUESTION)
CALL = answer("", tool_calls=CALLS[:1])
THOUGHT, SECOND = "<think>\nA tail.\n</think>\n\nA cat.", "<think>\nHm.\n</think>\n\nYes."
RESPONSE = {"role": "user", "content": "<tool_response>\n1\n</tool_response>"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "What is 2+3?"}],
    "system": [SYSTEM, ASK],
    "system as items": [ITEMS, ASK],
    "later system": [ASK, answer("A cat."), SYSTEM, ASK],
    "empty turns": [user(), answer(""), user({"type": "text", "text": ""})],
    "picture before": [user(PICTURE, QUESTION)],
    "picture after": [user(QUESTION, PICTURE)],
    "pictures around": [user(PICTURE, QUESTION, OTHER, QUESTION)],
    "pictures in every turn": [
        user(PICTURE, QUESTION),
        answer("A cat."),
        user(QUESTION, OTHER),
        answer("x"),
        user(PICTURE),
    ],
    "picture in a late turn": [ASK, answer("What?"), user(OTHER, PICTURE, QUESTION)],
    "video": [user(VIDEO, QUESTION)],
    "video before picture": [user(VIDEO, PICTURE, QUESTION)],
    "picture before video": [user(PICTURE, QUESTION, VIDEO), answer("A cat."), user(VIDEO, OTHER)],
    "url form": [user({"type": "image_url", "image_url": CAT}, QUESTION)],
    "calls": [ASK, CALL, RESULT, answer("Clear."), ASK],
    "null beside calls": [ASK, answer(None, tool_calls=CALLS), RESULT, RESULT],
    "no content beside calls": [ASK, {"role": "assistant", "tool_calls": CALLS}, RESULT],
    "text beside calls": [ASK, answer("Let me look.\n", tool_calls=CALLS), RESULT, RESULT, ASK],
    "calls without function": [ASK, answer("", tool_calls=[CALLS[0]["function"]]), RESULT],
    "pictures of a tool": [ASK, CALL, PHOTOS, user(OTHER)],
    "response in a user's turn": [ASK, answer("x"), RESPONSE],
    "thinking": [ASK, answer(THOUGHT), ASK, answer(SECOND)],
    "reasoning": [ASK, answer("A cat.", reasoning_content="A tail.\n"), ASK, answer("Yes.", reasoning="Hm.")],
    "thinking as a key": [ASK, answer("\nA cat.", thinking="\n"), answer("Again.", thinking="A tail.")],
    "reasoning beside calls": [ASK, {**CALL, "reasoning_content": "Look."}, RESULT, answer("Clear.")],
    "half a thought": [ASK, answer("</think>A cat."), answer("<think>A"), answer("x</think>y</think>\nz")],
}


@pytest.fixture(scope="module", params=["instruct", "thinking"])
def root(request: pytest.FixtureRequest, published_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of an artifact with the published tokenizer and the prompts of one of the published checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").symlink_to(published_tokenizer)
    for name in ("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    shutil.copyfile(TEMPLATES / f"{request.param}.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module")
def preparer(root: Path) -> Preparer:
    ids = {"image_token_id": 151655, "video_token_id": 151656}
    ids |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
    facts = dataclasses.replace(tiny_facts(), vocab_size=151936, **ids)
    return Preparer(artifact_without_graphs(root, facts=facts))


@pytest.fixture(scope="module")
def processor(root: Path) -> Iterator[Qwen3VLProcessor]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield whole_processor(monkeypatch, root)


def of_transformers(processor: Qwen3VLProcessor, conversation: list[Any], **variables: Any) -> list[int]:
    """The ids of transformers' processor."""
    parts = [
        item for message in conversation if isinstance(message.get("content"), list) for item in message["content"]
    ]
    images = [item.get("image", item.get("image_url")) for item in parts if item.get("type", "")[:5] == "image"]
    videos = [item["video"] for item in parts if item.get("type") == "video"]
    metadata = [VideoMetadata(total_num_frames=len(frames), fps=RATE) for frames in videos]
    text = processor.apply_chat_template(conversation, **variables)
    inputs = processor(text=[text], images=images or None, videos=videos or None, video_metadata=metadata or None)
    ids: list[int] = inputs["input_ids"][0]
    return ids


def of_runtime(preparer: Preparer, conversation: list[Message], **variables: Any) -> list[int]:
    def with_rates(message: Message) -> Message:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        return {**message, "content": [{**item, "fps": RATE} if "video" in item else item for item in content]}

    return preparer([[with_rates(message) for message in conversation]], **variables).input_ids[0].tolist()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_equal_the_processor(name: str, preparer: Preparer, processor: Qwen3VLProcessor) -> None:
    conversation = CONVERSATIONS[name]
    for tools in (None, [], TOOLS):
        for generation, counted in ((True, None), (False, True), (True, True)):
            variables = {"tools": tools, "add_generation_prompt": generation, "add_vision_id": counted}
            assert of_runtime(preparer, conversation, **variables) == of_transformers(
                processor, conversation, **variables
            )


def test_pictures_outside_turns_of_the_user(preparer: Preparer, processor: Qwen3VLProcessor) -> None:
    """Thinking's prompts show them, Instruct's leave them out, which transformers does not notice."""
    for message in ({**SYSTEM, "content": [PICTURE, QUESTION]}, answer([QUESTION, PICTURE])):
        conversation = [message, user(OTHER, QUESTION)]
        if preparer.artifact.root.name.startswith("thinking"):
            assert of_runtime(preparer, conversation) == of_transformers(
                processor, conversation, add_generation_prompt=True
            )
        else:
            with pytest.raises(InputError, match="the chat template shows 1 of 2 pictures"):
                of_runtime(preparer, conversation)


def test_prompts_of_random_conversations_equal_the_processor(preparer: Preparer, processor: Qwen3VLProcessor) -> None:
    rng = random.Random(22)
    for _ in range(300):
        conversation = [random_message(rng, index) for index in range(rng.randrange(1, 8))]
        variables = {"tools": rng.choice([None, TOOLS]), "add_generation_prompt": rng.random() < 0.7}
        ids = of_transformers(processor, conversation, **variables)
        assert of_runtime(preparer, conversation, **variables) == ids, json.dumps(conversation)


TEXTS = ["", "Hi", "\n", "a\n", "\n\nb", "<think>\nr\n</think>\n\nans", "</think>x", "<think>only", "é你好🙂", " s "]
TEXTS += ["<tool_response>\nx\n</tool_response>", "<tool_response>q", "{{ 7 }} <b>&'\"", "<think>a<think>b</think>c"]


def random_message(rng: random.Random, index: int) -> dict[str, Any]:
    """A message of text alone; pictures would take most of the time."""
    roles = ["user", "user", "assistant", "assistant", "tool", "system"]
    message: dict[str, Any] = {"role": rng.choice(roles)}
    content = rng.choice(
        [rng.choice(TEXTS), [{"type": "text", "text": rng.choice(TEXTS)} for _ in range(rng.randrange(4))]]
    )
    if rng.random() < 0.95:
        message["content"] = content if rng.random() < 0.95 else None
    if message["role"] == "assistant" and rng.random() < 0.5:
        message["tool_calls"] = rng.choices([*CALLS, CALLS[0]["function"]], k=rng.randrange(4))
    if message["role"] == "assistant" and rng.random() < 0.5:
        message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = rng.choice([*TEXTS, None])
    return message


def test_objects_in_a_message_are_pictures_too(preparer: Preparer) -> None:
    plain = of_runtime(preparer, [user(PICTURE, VIDEO, QUESTION)])
    objects = preparer([[user(Image(CAT), Video(CLIP, RATE), QUESTION["text"])]])
    assert objects.input_ids[0].tolist() == plain
