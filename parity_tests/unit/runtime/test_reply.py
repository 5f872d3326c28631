"""Parsing answers: reasoning, tool calls however broken, and everything else as text."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_export.runtime.answer import Answer, Limits
from qwen3vl_export.runtime.prompts import prompt
from qwen3vl_export.runtime.prompts.reply import Reply, Splitter, ToolCall, parse_reply, parse_tool_call

from ...fixtures.answers import STOP_IDS, TOKENIZER, make_steps
from ...fixtures.paths import TINY

TEMPLATE = prompt.compile_template((TINY / "chat_template.jinja").read_text("utf-8"))
WEATHER = {"name": "weather", "arguments": {"town": "Zürich", "days": 2}}
TAGGED = st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<th", "a", "\n", "{"]))


def called(value: Any) -> str:
    return f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>"


def test_plain_text() -> None:
    assert parse_reply(" a <b>cat</b> & 1 < 2\n") == Reply("a <b>cat</b> & 1 < 2")


@pytest.mark.parametrize(
    ("text", "thinking", "reply"),
    [
        ("hm\n</think>\n\na cat", True, Reply("a cat", "hm")),
        ("<think>\nhm\n</think>\n\na cat", False, Reply("a cat", "hm")),
        ("still at it", True, Reply("", "still at it")),  # cut short
        ("<think>\n\n</think>\n\na cat", False, Reply("a cat")),
        ("is it <tool_call>?</think>yes", True, Reply("yes", "is it <tool_call>?")),  # a thought is no call
        ("a cat</think>", False, Reply("a cat</think>")),
    ],
)
def test_reasoning(text: str, thinking: bool, reply: Reply) -> None:
    assert parse_reply(text, thinking) == reply


def test_tool_calls() -> None:
    reply = parse_reply(f"Let me look.\n{called(WEATHER)}\n{called({'name': 'now'})}")
    assert reply.content == "Let me look."
    assert [(call.name, call.arguments, call.error) for call in reply.tool_calls] == [
        ("weather", {"town": "Zürich", "days": 2}, None),
        ("now", {}, None),
    ]


def test_calls_without_anything_between_are_two() -> None:
    assert [call.name for call in parse_reply(called({"name": "a"}) + called({"name": "b"})).tool_calls] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ('{"name": "f", "arguments": {"a": 1}', "", "not JSON"),  # cut short
        ("{'name': 'f'}", "", "not JSON"),
        ("", "", "not JSON"),
        ("[" * 100_000, "", "not JSON"),
        ('["f"]', "", "not a JSON object"),
        ('{"arguments": {}}', "", "no name"),
        ('{"name": 3}', "", "no name"),
        ('{"name": "f", "arguments": [1]}', "f", "arguments is not a JSON object"),
        ('{"name": "f", "arguments": "{"}', "f", "not JSON"),
    ],
)
def test_broken_calls_are_reported(text: str, name: str, error: str) -> None:
    call = parse_tool_call(text)
    assert (call.name, call.arguments, call.text) == (name, {}, text)
    assert call.error is not None and call.error.startswith(error)
    assert parse_reply(f"so: <tool_call>{text}").tool_calls == (() if not text else (call,))


def test_calls_that_are_clear_though_not_strict() -> None:
    assert parse_tool_call('{"name": "f", "arguments": "{\\"a\\": 1}"}').arguments == {"a": 1}
    assert parse_tool_call('{"name": "f", "arguments": {"a": "one\ntwo"}}').arguments == {"a": "one\ntwo"}


@given(TAGGED, st.booleans(), st.data())
def test_pieces_of_any_size_are_the_same_parts(words: list[str], thinking: bool, data: st.DataObject) -> None:
    text = "".join(words)

    def parts(pieces: list[str]) -> dict[tuple[str, int], str]:
        splitter, texts = Splitter(thinking), dict[tuple[str, int], str]()
        for part in [part for piece in pieces for part in splitter.push(piece)] + list(splitter.finish()):
            texts[part.kind, part.section] = texts.get((part.kind, part.section), "") + part.text
        return texts

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    assert parts(pieces) == parts([text]) == parts(list(text))


def test_an_answer_in_parts() -> None:
    text = f"hm</think>a cat{called(WEATHER)}"
    answer = Answer(make_steps(text), TOKENIZER, STOP_IDS, Limits(), time.perf_counter(), thinking=True)
    kinds = {"reasoning": "", "content": "", "tool_call": ""}
    for part in answer.parts():
        kinds[part.kind] += part.text
    assert kinds == {
        "reasoning": "hm",
        "content": "a cat",
        "tool_call": f"\n{json.dumps(WEATHER, ensure_ascii=False)}\n",
    }
    assert answer.reply == Reply("a cat", "hm", (ToolCall("weather", WEATHER["arguments"], kinds["tool_call"]),))  # type: ignore[arg-type]


def test_a_reply_continues_the_conversation_as_it_was_written() -> None:
    text = f"Let me look.\n{called(WEATHER)}"
    message = parse_reply(text).to_message()
    rendered = prompt.render(
        TEMPLATE, [{"role": "user", "content": "Weather?"}, message], {}, add_generation_prompt=False
    )
    assert rendered.endswith(f"<|im_start|>assistant\n{text}<|im_end|>\n")
    assert parse_reply("a</think>b", thinking=True).to_message() == {
        "role": "assistant",
        "content": "b",
        "reasoning_content": "a",
    }
    assert parse_reply("see <tool_call>{</tool_call>").to_message()["content"] == "see\n<tool_call>{</tool_call>"
