"""Normalizes questions: messages whose content is a list of text and picture items.

Accepted: a string, an `Image`, `Video` or `Picture`, a list of those (one user turn), or messages with `role` and
`content` in the formats of transformers, qwen-vl-utils and the OpenAI API. Pictures are taken out of the messages and
listed in order of appearance. A key that is null is as if it were not there, as in transformers' processor.

Knows message formats; nothing about templates or pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...errors import InputError
from .items import KEYS, Medium, check_keys, read_item
from .template_data import REASONING

ContentItem = str | Medium
Content = ContentItem | Mapping[str, Any] | Sequence[ContentItem] | Sequence[Mapping[str, Any]]
Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
CALL_KEYS = ("id", "type", "index", "function", "name", "arguments")
FUNCTION_KEYS = ("name", "arguments")
KNOWN = KEYS.union(ROLES, MESSAGE_KEYS, CALL_KEYS)  # what has a place, and is refused in any other


def as_messages(content: Content) -> list[Message]:
    """A conversation, from any accepted format.

    Raises:
        InputError: `content` is empty or no conversation, or only some of its items are messages.
    """
    if isinstance(content, ContentItem):
        return [{"role": "user", "content": [content]}]
    if not isinstance(content, Iterable):
        raise InputError(f"a conversation cannot be a {type(content).__name__}", "Pass a question, or messages")
    items: list[Any] = [content] if isinstance(content, Mapping) else [to_mapping(item) for item in content]
    if not items:
        raise InputError("the conversation is empty", "Pass a question, or messages")
    roles = ["role" in item if isinstance(item, Mapping) else False for item in items]
    if all(roles):
        return items
    if any(roles):
        raise InputError(f"message {roles.index(False) + 1} has no role", "Pass messages, or the items of one question")
    return [{"role": "user", "content": items}]


def to_mapping(message: Any) -> Any:
    """A message object of a client library (pydantic) as the mapping it stands for; anything else as it is."""
    dump = getattr(message, "model_dump", None)
    return dump() if callable(dump) else message


def split_media(
    messages: Sequence[Message], template_words: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[Medium]]:
    """Messages for a chat template, without null keys, and their pictures and videos in order.

    An item of a picture has the type `image` or `video`, whatever its form.

    Args:
        template_words: names in the template's source; those that are no known keys may be keys or roles as well.

    Raises:
        InputError: a role, key or item that is unknown or cannot be used.
    """
    media: list[Medium] = []
    template_messages: list[dict[str, Any]] = []
    also = frozenset(template_words) - KNOWN
    for given in map(to_mapping, messages):
        if not isinstance(given, Mapping):
            raise InputError(f"a message is a {type(given).__name__}", 'Expected {"role": ..., "content": ...}')
        message = {key: value for key, value in given.items() if value is not None}
        check_message(message, also)
        content = message.get("content", "")
        if not isinstance(content, str):
            parts = content if isinstance(content, Sequence) else [content]
            read = [read_item(to_mapping(part), also) for part in parts]
            message["content"] = [item for item, _ in read]
            media += [medium for _, medium in read if medium is not None]
        template_messages.append(message)
    return template_messages, media


def check_message(message: Message, also: Collection[str]) -> None:
    """Refuse what the template would leave out; `also` are further roles and keys.

    Raises:
        InputError: an unknown role, or an unknown key of the message or of one of its tool calls.
    """
    role = message.get("role")
    if not isinstance(role, str) or (role not in ROLES and role not in also):
        raise InputError(f"a message has the role {role!r}", f"The chat template knows {', '.join(ROLES)}")
    check_keys(message, MESSAGE_KEYS, f"a message of {role!r}", also)
    calls = message.get("tool_calls", ())
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError("tool_calls is not a list of objects", 'Expected [{"type": "function", "function": {...}}]')
    for call in calls:
        check_keys(call, CALL_KEYS, "a tool call", also)
        function = call.get("function") or call
        if not isinstance(function, Mapping) or "name" not in function:
            raise InputError("a tool call has no name", 'Expected {"function": {"name": ..., "arguments": ...}}')
        if function is not call:
            check_keys(function, FUNCTION_KEYS, "the function of a tool call", also)
