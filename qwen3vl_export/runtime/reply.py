"""What an answer is made of: reasoning, tool calls, and the rest.

Thinking models reason between `<think>` and `</think>`; their prompt ends with the first of them, so an answer begins
inside. Calls of tools are JSON between `<tool_call>` and `</tool_call>`, as Qwen's chat templates ask for.

Knows these tags and the JSON between them; nothing about tokens, and calls nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["content", "reasoning", "tool_call"]

# Where a text of one kind ends, and what follows.
TAGS: dict[Kind, dict[str, Kind]] = {
    "content": {"<think>": "reasoning", "<tool_call>": "tool_call"},
    "reasoning": {"</think>": "content"},
    "tool_call": {"</tool_call>": "content"},
}


@dataclass(frozen=True)
class Part:
    """A piece of an answer; pieces of one stretch between two tags have the same `stretch`."""

    kind: Kind
    text: str
    stretch: int


@dataclass(frozen=True)
class ToolCall:
    """A call the model asks for. If what it wrote cannot be read, `error` says why and `arguments` is empty."""

    name: str
    arguments: dict[str, Any]
    text: str  # as the model wrote it
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer, taken apart. `content` is what is for the user, without surrounding white space."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())

    def to_message(self) -> dict[str, Any]:
        """The message that continues the conversation, as chat templates read it; unreadable calls stay text."""
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
    """Takes a text apart as it comes, in pieces of any size. Tags are never given out.

    Args:
        thinking: the text begins inside reasoning.
    """

    def __init__(self, thinking: bool = False) -> None:
        self._kind: Kind = "reasoning" if thinking else "content"
        self._stretch = 0
        self._held = ""

    def push(self, text: str) -> Iterator[Part]:
        """The parts that are sure with this text."""
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
            self._stretch += 1
        keep = max(beginning(self._held, tag) for tag in tags)
        yield from self._part(len(self._held) - keep)

    def finish(self) -> Iterator[Part]:
        """What was held back because it might have become a tag."""
        yield from self._part(len(self._held))

    def _part(self, length: int) -> Iterator[Part]:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            yield Part(self._kind, text, self._stretch)


def beginning(text: str, whole: str) -> int:
    """How many of the last characters of `text` are the first of `whole`, all of it excluded."""
    longest = min(len(text), len(whole) - 1)
    return next((length for length in range(longest, 0, -1) if whole.startswith(text[-length:])), 0)


def parse_reply(text: str, thinking: bool = False) -> Reply:
    """A whole answer taken apart; `thinking` as in `Splitter`. What cannot be read is told in the result."""
    splitter = Splitter(thinking)
    stretches: dict[int, tuple[Kind, str]] = {}
    for part in (*splitter.push(text), *splitter.finish()):
        _, before = stretches.get(part.stretch, (part.kind, ""))
        stretches[part.stretch] = part.kind, before + part.text

    def of(kind: Kind) -> list[str]:
        return [text for found, text in stretches.values() if found == kind]

    calls = tuple(parse_tool_call(text) for text in of("tool_call"))
    return Reply("".join(of("content")).strip(), "\n".join(of("reasoning")).strip(), calls)


def parse_tool_call(text: str) -> ToolCall:
    """What stands between the tags: `{"name": ..., "arguments": {...}}`."""

    def broken(error: str) -> ToolCall:
        return ToolCall(name if isinstance(name, str) else "", {}, text, error)

    name: Any = ""
    try:
        call = json.loads(text, strict=False)  # line breaks inside strings are common and clear
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
