"""Prompts, character for character as transformers makes them, and messages of every form."""

from __future__ import annotations

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
from qwen3vl_export.runtime import Image, prompt
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
