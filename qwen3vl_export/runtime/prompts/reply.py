"""Parses answers: reasoning, tool calls, and content.

Thinking models reason between `<think>` and `</think>`; their prompt ends with the opening tag, so an answer begins
inside. Tool calls are JSON between `<tool_call>` and `</tool_call>`, as Qwen's chat templates specify.

Knows these tags and the JSON between them; nothing about tokens, and calls nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["content", "reasoning", "tool_call"]

# kind -> {tag that ends text of this kind: kind that follows}
TAGS: dict[Kind, dict[str, Kind]] = {
    "content": {"<think>": "reasoning", "<tool_call>": "tool_call"},
    "reasoning": {"</think>": "content"},
    "tool_call": {"</tool_call>": "content"},
}


@dataclass(frozen=True)
class AnswerPart:
    """A piece of an answer; all pieces between two tags have the same `section` number."""

    kind: Kind
    text: str
    section: int


@dataclass(frozen=True)
class ToolCall:
    """A call the model requests. If its text cannot be parsed, `error` says why and `arguments` is empty."""

    name: str
    arguments: dict[str, Any]
    text: str  # as the model wrote it
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer, parsed. `content` is the part for the user, without surrounding white space."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())

    def to_message(self) -> dict[str, Any]:
        """The message to append to the conversation, in the chat template's format; broken calls remain text."""
        broken = [f"<tool_call>{call.text}</tool_call>" for call in self.tool_calls if call.error]
        message: dict[str, Any] = {"role": "assistant", "content": "\n".join([*filter(None, [self.content]), *broken])}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        calls = [call for call in self.tool_calls if not call.error]
        if calls:
            functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
            message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
        return message


class Splitter:
    """Splits a streamed text, in pieces of any size, into parts. Tags are never returned.

    Args:
        thinking: the text begins inside reasoning.
    """

    def __init__(self, thinking: bool = False) -> None:
        self._kind: Kind = "reasoning" if thinking else "content"
        self._section = 0
        self._held = ""

    def push(self, text: str) -> Iterator[AnswerPart]:
        """The parts that this text completes."""
        self._held += text
        while True:
            tags = TAGS[self._kind]
            starts = [(start, tag) for tag in tags if (start := self._held.find(tag)) >= 0]
            if not starts:
                break
            start, tag = min(starts)
            yield from self._part(start)
            self._held = self._held[len(tag) :]
            self._kind = tags[tag]
            self._section += 1
        undecided = max(overlap(self._held, tag) for tag in tags)
        yield from self._part(len(self._held) - undecided)

    def finish(self) -> Iterator[AnswerPart]:
        """The text held back because it might have become a tag."""
        yield from self._part(len(self._held))

    def _part(self, length: int) -> Iterator[AnswerPart]:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            yield AnswerPart(self._kind, text, self._section)


def overlap(text: str, whole: str) -> int:
    """The length of the longest proper prefix of `whole` that `text` ends with."""
    longest = min(len(text), len(whole) - 1)
    return next((length for length in range(longest, 0, -1) if whole.startswith(text[-length:])), 0)


def parse_reply(text: str, thinking: bool = False) -> Reply:
    """A whole answer, parsed; `thinking` as for `Splitter`. Tool calls that cannot be parsed have an `error`."""
    splitter = Splitter(thinking)
    sections: dict[int, tuple[Kind, str]] = {}
    for part in (*splitter.push(text), *splitter.finish()):
        _, before = sections.get(part.section, (part.kind, ""))
        sections[part.section] = part.kind, before + part.text

    def texts_of(kind: Kind) -> list[str]:
        return [text for section_kind, text in sections.values() if section_kind == kind]

    calls = tuple(parse_tool_call(text) for text in texts_of("tool_call"))
    return Reply("".join(texts_of("content")).strip(), "\n".join(texts_of("reasoning")).strip(), calls)


def parse_tool_call(text: str) -> ToolCall:
    """Parse the text between the tags: `{"name": ..., "arguments": {...}}`."""

    def broken(error: str) -> ToolCall:
        return ToolCall(name if isinstance(name, str) else "", {}, text, error)

    name: Any = ""
    try:
        call = json.loads(text, strict=False)  # raw line breaks inside strings are common and unambiguous
        if not isinstance(call, dict):
            return broken("not a JSON object")
        name, arguments = call.get("name"), call.get("arguments", {})
        if isinstance(arguments, str):  # encoded twice
            arguments = json.loads(arguments, strict=False)
    except (ValueError, RecursionError) as error:
        return broken(f"not JSON: {error}")
    if not isinstance(name, str) or not name:
        return broken("no name")
    if not isinstance(arguments, dict):
        return broken("arguments is not a JSON object")
    return ToolCall(name, arguments, text)
