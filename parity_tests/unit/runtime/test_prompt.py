"""Prompts, character for character as transformers makes them, and messages of every form."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils.chat_template_utils import render_jinja_template
from transformers.video_utils import VideoMetadata

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import Image, Video, prompt
from qwen3vl_export.runtime.messages import as_messages, split_media
from qwen3vl_export.runtime.prepare import Preparer

from ...fixtures.paths import TINY
from ...fixtures.standin import artifact_without_graphs

SOURCE = (TINY / "chat_template.jinja").read_text("utf-8")
SPECIAL = AutoTokenizer.from_pretrained(TINY).special_tokens_map
CAT = np.full((64, 96, 3), 90, np.uint8)
CLIP = [np.full((64, 64, 3), value, np.uint8) for value in (0, 90, 180)]
TOKENS = ("<|image_pad|>", "<|video_pad|>")

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "What is 2+3?"}],
    "system": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
    "image": [
        {"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is this?"}]}
    ],
    "turns": [
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "image", "image": CAT}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "And this? é 你好 🙂"}]},
    ],
    "video": [{"role": "user", "content": [{"type": "video", "video": CLIP}, {"type": "text", "text": "What moves?"}]}],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "<é>"}}}]},
        {"role": "tool", "content": "sunny"},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<b>", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("generation", [True, False])
def test_rendering_equals_transformers(name: str, tools: Any, generation: bool) -> None:
    conversation = CONVERSATIONS[name]
    expected, _ = render_jinja_template(
        [conversation], tools=tools, chat_template=SOURCE, add_generation_prompt=generation, **SPECIAL
    )
    messages, _ = split_media(conversation)
    template = prompt.compile_template(SOURCE)
    assert prompt.render(template, messages, SPECIAL, generation, tools=tools) == expected[0]


def test_blocks_on_lines_of_their_own_leave_no_space() -> None:
    source = "{% for m in messages %}\n    {% if m.role %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    conversation = CONVERSATIONS["text"]
    expected, _ = render_jinja_template([conversation], chat_template=source)
    assert prompt.render(prompt.compile_template(source), conversation, {}) == expected[0] == "  What is 2+3?\n"


def test_template_helpers() -> None:
    template = prompt.compile_template("{{ {'a': '<é>'} | tojson }}{% for x in [1, 2] %}{% break %}{% endfor %}")
    assert prompt.render(template, [], {}) == '{"a": "<é>"}'
    year = prompt.compile_template("{{ strftime_now('%Y') }}")
    assert prompt.render(year, [], {}).startswith("2")
    refusing = prompt.compile_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        prompt.render(refusing, [], {})
    with pytest.raises(ArtifactError, match="line 1"):
        prompt.compile_template("{% if %}")


def test_a_template_reaches_nothing_but_data() -> None:
    escaping = prompt.compile_template("{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        prompt.render(escaping, [], {})
    leaking = prompt.compile_template("{{ messages[0].content }}{{ messages[0].content.save }}")
    assert prompt.render(leaking, [{"content": PIL.Image.new("RGB", (2, 2))}], {}) == "<Image>"


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("fps", [1.0, 2.0, 23.976])
def test_video_text_equals_the_processor(count: int, fps: float) -> None:
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
    )
    processor._calculate_timestamps = lambda *args: Qwen3VLProcessor._calculate_timestamps(processor, *args)
    metadata = VideoMetadata(total_num_frames=count, fps=fps, frames_indices=list(range(count)))
    grid = np.array([[-(-count // 2), 4, 6]])
    inputs = {"video_grid_thw": grid, "video_metadata": [metadata]}
    expected = Qwen3VLProcessor.replace_video_token(processor, inputs, 0)
    seconds = prompt.frame_seconds(range(count), fps, 2)
    assert prompt.video_text(("<|vision_start|>", "<|video_pad|>", "<|vision_end|>"), 6, seconds) == expected


def test_expansion_is_in_order() -> None:
    text = "a<|image_pad|>b<|video_pad|>c<|image_pad|>"
    pictures = [(TOKENS[0], "<|image_pad|>" * 2), (TOKENS[1], "V"), (TOKENS[0], "I")]
    assert prompt.expand_placeholders(text, TOKENS, pictures) == "a<|image_pad|><|image_pad|>bVcI"
    assert prompt.expand_placeholders("no pictures", TOKENS, []) == "no pictures"


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ("<|image_pad|>", []),
        ("none", [(TOKENS[0], "x")]),
        ("<|image_pad|><|image_pad|>", [(TOKENS[0], "x")]),
        ("<|image_pad|><|video_pad|>", [(TOKENS[1], "x"), (TOKENS[0], "y")]),
        ("<|video_pad|>", [(TOKENS[0], "x")]),
    ],
)
def test_placeholders_that_are_not_the_pictures(text: str, pictures: list[tuple[str, str]]) -> None:
    with pytest.raises(InputError, match="Message texts must not contain these tokens"):
        prompt.expand_placeholders(text, TOKENS, pictures)


def test_a_placeholder_in_a_question_is_refused() -> None:
    preparer = Preparer(artifact_without_graphs())
    with pytest.raises(InputError, match=r"has 2 <\|image_pad\|> and 0 <\|video_pad\|> for 1 <\|image_pad\|>"):
        preparer([as_messages([Image(CAT), "What does <|image_pad|> mean?"])])
    with pytest.raises(InputError, match=r"has 1 <\|image_pad\|>"):
        preparer([as_messages("What does <|image_pad|> mean?")])


@pytest.mark.parametrize(
    "content",
    [
        [Image(CAT), "What is this?"],
        [{"role": "user", "content": [Image(CAT), "What is this?"]}],
        [{"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image", "image": Image(CAT)}, "What is this?"]}],
        [{"role": "user", "content": [{"image": CAT}, {"text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image", "path": CAT}, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT}}, "What is this?"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": CAT}, "What is this?"]}],
        [{"image": CAT}, {"text": "What is this?"}],
    ],
)
def test_every_form_of_a_question_is_the_same_question(content: Any) -> None:
    messages, media = split_media(as_messages(content))
    expected = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    assert [message["role"] for message in messages] == ["user"]
    assert [dict(item, type=item.get("type", "text")) for item in messages[0]["content"]] == expected
    assert len(media) == 1 and isinstance(media[0], Image) and media[0].source is CAT


def test_a_video_in_every_form() -> None:
    for part in (
        Video(CLIP, 4),
        {"type": "video", "video": CLIP, "fps": 4},
        {"video": CLIP, "fps": 4.0},
        {"type": "video", "video": Video(CLIP, 4)},
    ):
        messages, media = split_media(as_messages([part, "What moves?"]))  # type: ignore[list-item]
        assert messages[0]["content"][0] == {"type": "video"}
        assert media == [Video(CLIP, 4)]
    for part in (
        {"type": "video", "video": "clip.mp4", "fps": 1},
        {"type": "video_url", "video_url": {"url": "clip.mp4"}, "fps": 1},
    ):
        assert split_media(as_messages([part]))[1] == [Video("clip.mp4", sample_fps=1.0)]
    assert split_media(as_messages([{"type": "video", "path": "clip.mp4"}]))[1] == [Video("clip.mp4")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the conversation is empty"),
        ([3], "a message holds a int"),
        ([{"type": "audio", "audio": "x.wav"}], "an item of type 'audio'"),
        ([{"type": "image"}], "an item of type 'image' without data"),
        ([{"type": "video"}], "an item of type 'video' without data"),
    ],
)
def test_content_of_no_known_form(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_media(as_messages(content))


def test_the_template_may_be_in_the_tokenizer_config(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}!"}')
    assert Preparer(artifact_without_graphs(tmp_path))([as_messages([{"role": "user", "content": "Hi"}])]).texts == (
        "Hi!",
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"no chat_template\.jinja"):
        Preparer(artifact_without_graphs(tmp_path))([as_messages("Hi")])


def test_base64_of_a_message_is_a_picture() -> None:
    text = base64.b64encode(b"picture").decode()
    for part in ({"type": "image", "base64": text}, {"type": "image", "image": f"data:;base64,{text}"}):
        assert split_media(as_messages([part]))[1] == [Image(f"data:;base64,{text}")]
