"""Messages to the text the model reads: chat template, then one placeholder token for each feature.

Renders the checkpoint's Jinja template in a sandbox with the options and helpers of transformers'
`apply_chat_template`, then expands each `<|image_pad|>` and `<|video_pad|>` as `Qwen3VLProcessor` does.

Knows text and how many tokens a picture takes; nothing about pixels or ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from ..errors import ArtifactError, InputError

PLAIN = (str, int, float, bool, type(None))

Message = Mapping[str, Any]


def compile_template(source: str) -> jinja2.Template:
    """A chat template, ready to render.

    Raises:
        ArtifactError: the template has a syntax error.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ArtifactError(f"chat_template.jinja: line {error.lineno}: {error.message}", "Rebuild") from error


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; templates count on one that does not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def render(
    template: jinja2.Template,
    messages: Sequence[Message],
    special: Mapping[str, str],
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The text of a conversation. `special` are the tokenizer's named tokens, `variables` what else the template reads
    (such as `tools`).

    Raises:
        InputError: the template refuses these messages.
    """
    given = {"tools": None, "documents": None, **special, **variables}
    try:
        return template.render(
            messages=[plain(message) for message in messages], add_generation_prompt=add_generation_prompt, **given
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses these messages: {error}", "Check roles and content") from error


def plain(value: Any) -> Any:
    """The value rebuilt of JSON types, so that a template can call nothing; other objects become their type's name."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def image_text(token: str, tokens: int) -> str:
    """What one image placeholder becomes: `tokens` times the token."""
    return token * tokens


def video_text(tokens: tuple[str, str, str], frame_tokens: int, seconds: Sequence[float]) -> str:
    """What one video placeholder becomes: each frame with its time, between start and end.

    `tokens` are vision start, video and vision end; `seconds` the time of each of the t (merged) frames.
    """
    start, token, end = tokens
    return "".join(f"<{second:.1f} seconds>{start}{token * frame_tokens}{end}" for second in seconds)


def frame_seconds(indices: Sequence[int], fps: float, temporal: int) -> list[float]:
    """The time of each merged frame: halfway between the first and the last of its `temporal` frames.

    Frame i of the whole video is shown at i / fps, and `indices` are those the model sees. The last one is repeated to
    complete the last group (`Qwen3VLProcessor._calculate_timestamps`).
    """
    complete = [*indices, *[*indices[-1:]] * (-len(indices) % temporal)]
    times = [index / fps for index in complete]
    return [(times[i] + times[i + temporal - 1]) / 2 for i in range(0, len(times), temporal)]


def expand(text: str, tokens: Sequence[str], replacements: Sequence[tuple[str, str]]) -> str:
    """Replace the placeholders of a rendered prompt, in order.

    Args:
        tokens: every placeholder token of the model.
        replacements: for each picture of the conversation, in order, its placeholder and what it becomes.

    Raises:
        InputError: the prompt's placeholders are not the pictures' one for one: a message's text holds one, or the
            template left a picture out.
    """
    placeholder = re.compile("|".join(map(re.escape, tokens)))
    found = placeholder.findall(text)
    wanted = [token for token, _ in replacements]
    if found != wanted:
        raise InputError(
            f"the prompt holds {counted(tokens, found)} for {counted(tokens, wanted)} among the messages",
            "Message texts must not contain these tokens",
        )
    pieces = iter([replacement for _, replacement in replacements])
    return placeholder.sub(lambda _: next(pieces), text)


def counted(tokens: Sequence[str], found: Sequence[str]) -> str:
    return " and ".join(f"{found.count(token)} {token}" for token in tokens)
