"""Control tokens that are spelled in a message stay text: what a stranger writes cannot end a turn or open another.

A chat template writes control tokens such as `<|im_end|>` around messages, and the tokenizer finds them wherever they
are spelled, in the messages too. To tell the two apart, the first character of every control token (`<`, for Qwen) is
replaced in the messages by a mark, a character that no message has. The template is rendered with the marks in place,
so it is only the template that spells control tokens. The text between these is encoded as a whole, without control
tokens and with the original characters; text that spells none therefore has the same ids as without all this.

In the messages of users and tools, every added token of the tokenizer is text. In those of the assistant, only the
tokens that the tokenizer calls special are: a model can be made to write `<|im_end|>` letter by letter, and its answer
is part of the next prompt, but `<think>` and `<tool_call>` are its own. Documents are treated as a user's messages, and
tools as an assistant's. System messages are the caller's and keep all.

Knows messages and tokens; nothing about the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import InputError
from .messages import Message
from .tokenizer import Tokenizer

CANDIDATES = range(0xE000, 0xF900)  # for marks: characters for private use
NAMES = ("role", "type")  # values that templates compare with names
CALLER = ("system", "developer")  # roles whose text keeps its control tokens


class AsSpelled:
    """What a template reads of one conversation, and the ids of the prompt it renders: control tokens wherever spelled.

    Args:
        messages, variables: as templates take them.
    """

    def __init__(self, messages: Sequence[Message], variables: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        self.messages = messages
        self.variables = variables
        self._tokenizer = tokenizer

    def restore(self, text: str) -> str:
        """The rendered text as a person reads it."""
        return text

    def encode(self, text: str) -> list[int]:
        """The token ids of rendered text."""
        return self._tokenizer.encode(text)


class PlainText(AsSpelled):
    """The same with marks in messages and variables: control tokens only where the template writes them.

    Raises:
        InputError: the messages use every character that could be a mark.
    """

    def __init__(self, messages: Sequence[Message], variables: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        first = sorted({token[0] for token in tokenizer.added_tokens})
        used = {letter for text in texts_in([*messages, variables]) for letter in text}
        marks = [chr(code) for code in CANDIDATES if chr(code) not in used]
        if len(marks) < len(first):
            raise InputError("the messages use all private characters of Unicode", "Remove some of them")
        self._marks = dict(zip(map(ord, first), marks, strict=False))
        self._originals = {ord(mark): chr(code) for code, mark in self._marks.items()}
        special = [token for token, is_special in tokenizer.added_tokens.items() if is_special]
        self._special = re.compile("|".join(map(re.escape, special)) if special else "(?!)")
        marking = {"documents": self._mark, "tools": self._mark_special}
        super().__init__(
            [self._mark_message(message) for message in messages],
            {name: map_texts(value, marking[name]) if name in marking else value for name, value in variables.items()},
            tokenizer,
        )

    def restore(self, text: str) -> str:
        return text.translate(self._originals)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for token_id, start, stop in self._tokenizer.find_added(text):
            ids += [*self._tokenizer.encode_plain(self.restore(text[end:start])), token_id]
            end = stop
        return ids + self._tokenizer.encode_plain(self.restore(text[end:]))

    def _mark_message(self, message: Message) -> Message:
        role = message.get("role")
        if role in CALLER:
            return message
        marked: Message = map_texts(message, self._mark_special if role == "assistant" else self._mark)
        return marked

    def _mark(self, text: str) -> str:
        return text.translate(self._marks)

    def _mark_special(self, text: str) -> str:
        return self._special.sub(lambda match: self._mark(match[0][0]) + match[0][1:], text)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a message or a part of it, with every text changed but the values that are names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: item if key in NAMES else map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, change) for item in value]
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a message, or in a part or a list of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)
