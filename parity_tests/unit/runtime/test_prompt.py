"""Prompts, character for character as transformers makes them, and messages of every form."""

from __future__ import annotations

import dataclasses
import enum
import json
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
from qwen3vl_export.runtime import Image
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts import prompt
from qwen3vl_export.runtime.prompts.messages import as_messages, split_media

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


class Enumerated(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Place:
    town: str
    height: np.float32


BERN = Place("Bern", np.float32(2))
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi", "data": {1: "one", "list": (1, 2.5, True, None), "place": BERN}},
    {"role": "assistant", "content": "Hm", "reasoning": "thought", "colour": Enumerated.RED, "count": np.int64(3)},
    {"role": "user", "content": [{"type": "image", "image": PIL.Image.new("RGB", (2, 2))}], "array": CAT},
]  # fmt: skip
FEATURES = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "generation in a loop": "{% for m in messages %}{% if loop.last %}{%- generation %}\n{{ loop.index }}"
    "{% endgeneration -%} x{% endif %}{% endfor %}",
    "break": "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "tojson": "{{ messages[0].data | tojson }}{{ {'b': '<é>', 'a': [1]} | tojson(indent=2, sort_keys=True) }}",
    "tojson in ASCII": "{{ 'é' | tojson(ensure_ascii=true) }}{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "strftime_now": "{{ strftime_now('%Y-%m-%d') }}",
    "namespace": "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + n.self %}{{ n.a }}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['a'], 2) }}",
    "values": "{{ messages[0].data.place.town }}{{ messages[0].data.place.height }}{{ messages[0].data[1] }}"
    "{{ messages[1].colour }}{{ messages[1].count + 1 }}{{ messages[2].array }}{{ messages[0].data.list }}",
    "reasoning": "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ messages[1] | tojson }}",
    "variables": "{{ enable_thinking }}{{ documents[0].title }}{{ tools | length }}"
    "{{ add_generation_prompt }}{{ eos_token }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ nothing is defined }}",
    "lines": "{% for m in messages %}\n    {% if m.role %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_of_templates_is_that_of_transformers(name: str) -> None:
    variables: dict[str, Any] = {"enable_thinking": False, "tools": TOOLS, "documents": [{"title": "A", "text": "b"}]}
    expected, _ = render_jinja_template(
        [TALK], chat_template=FEATURES[name], add_generation_prompt=True, **variables, **SPECIAL
    )
    assert prompt.render(prompt.compile_template(FEATURES[name]), TALK, SPECIAL, **variables) == expected[0] != ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ namespace(_hidden=1) }}", "a namespace cannot have the name _hidden"),
        ("{% set n = namespace() %}{% set n._hidden = 1 %}", "a namespace cannot have the name _hidden"),
        ("{{ dict.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_or_may_not_do(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompt.render(prompt.compile_template(source), TALK, {})


def test_a_template_that_cannot_be_compiled() -> None:
    with pytest.raises(ArtifactError, match="line 1"):
        prompt.compile_template("{% if %}")


def preparer_with(tmp_path: Path, template: Any) -> Preparer:
    """A preparer whose templates are in `tokenizer_config.json`."""
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return Preparer(artifact_without_graphs(tmp_path))


NAMED = {"default": "Plain. {{ tools }}", "tool_use": "{{ tools | length }} tools.", "rag": "{{ documents }}"}


@pytest.mark.parametrize(
    "templates", [NAMED, [{"name": name, "template": text} for name, text in NAMED.items()]], ids=["dict", "list"]
)
def test_of_several_templates_that_for_tools_is_taken_with_tools(tmp_path: Path, templates: Any) -> None:
    preparer = preparer_with(tmp_path, templates)
    tokenizer = AutoTokenizer.from_pretrained(TINY, chat_template=NAMED)
    question = CONVERSATIONS["text"]
    for tools in (None, [], TOOLS):
        expected = tokenizer.apply_chat_template(question, tools=tools, tokenize=False)
        assert preparer([question], tools=tools).texts == (expected,)
    others = {name: text for name, text in NAMED.items() if name != "tool_use"}
    assert preparer_with(tmp_path, others)([question], tools=TOOLS).texts[0].startswith("Plain.")


@pytest.mark.parametrize(
    "templates", [{}, None, 3, {"rag": "x"}, [{"name": "rag", "template": "x"}], ["x"], [{}], {"default": 3}]
)
def test_no_default_template(tmp_path: Path, templates: Any) -> None:
    with pytest.raises(ArtifactError, match=r"no chat_template\.jinja"):
        preparer_with(tmp_path, templates)([as_messages("Hi")])


def test_variables_the_template_does_not_read_are_refused_by_name(tmp_path: Path) -> None:
    preparer = preparer_with(tmp_path, "{% set own = 1 %}{{ enable_thinking }}{{ namespace(a=own).a }}{{ tools }}")
    assert preparer([as_messages("Hi")], enable_thinking=7, tools=None, documents=None).texts == ("71None",)
    for name in ("enable_thinkin", "documents", "messages", "own", "namespace", "template"):
        for value in ([{"a": 1}], False, 0, "", np.zeros(2)):
            with pytest.raises(InputError, match=rf"does not read {name}\. It reads enable_thinking, tools"):
                preparer([as_messages("Hi")], **{name: value})
    assert preparer([as_messages("Hi")], add_generation_prompt=False, documents=[]).texts == ("1None",)
    for value in ("x", {"a": 1}, [len]):
        with pytest.raises(InputError, match="tools is not a list of objects"):
            preparer([as_messages("Hi")], tools=value)


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
        ("<|image_pad|><|image_pad|>", [(TOKENS[0], "x")]),
        ("<|image_pad|><|video_pad|>", [(TOKENS[1], "x"), (TOKENS[0], "y")]),
        ("<|video_pad|>", [(TOKENS[0], "x")]),
    ],
)
def test_placeholders_that_are_not_the_pictures(text: str, pictures: list[tuple[str, str]]) -> None:
    with pytest.raises(InputError, match="Message texts must not contain these tokens"):
        prompt.expand_placeholders(text, TOKENS, pictures)


def test_a_picture_that_the_template_leaves_out_is_refused() -> None:
    with pytest.raises(InputError, match=r"shows 1 of 2 pictures\. Put pictures into turns of the user"):
        prompt.expand_placeholders("<|image_pad|>", TOKENS, [(TOKENS[0], "x"), (TOKENS[1], "y")])


def test_a_placeholder_in_a_question_is_refused() -> None:
    preparer = Preparer(artifact_without_graphs())
    with pytest.raises(InputError, match=r"has 2 <\|image_pad\|> and 0 <\|video_pad\|> for 1 <\|image_pad\|>"):
        preparer([as_messages([Image(CAT), "What does <|image_pad|> mean?"])])
    with pytest.raises(InputError, match=r"has 1 <\|image_pad\|>"):
        preparer([as_messages("What does <|image_pad|> mean?")])


def test_the_template_may_be_in_the_tokenizer_config(tmp_path: Path) -> None:
    preparer = preparer_with(tmp_path, "{{ messages[0].content }}!")
    assert preparer([as_messages([{"role": "user", "content": "Hi"}])]).texts == ("Hi!",)
