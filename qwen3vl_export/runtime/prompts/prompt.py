"""Messages to the text the model reads: the chat template, then one placeholder token for each feature.

Renders the checkpoint's Jinja template in a sandbox with the options and helpers of transformers'
`apply_chat_template`, then expands each `<|image_pad|>` and `<|video_pad|>` as `Qwen3VLProcessor` does.

Knows text and how many tokens a picture takes; nothing about pixels or ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from ...errors import ArtifactError, InputError
from . import sandbox
from .messages import Message
from .sandbox_budget import TooMuchError
from .template_data import Dictionary, Namespace, TemplateNames, name_reasoning, read_names, to_plain


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`, which mark a model's own turns for trainers: their content alone.

    As `AssistantTracker` of transformers' `chat_template_utils`, which also notes where the content is in the text.
    """

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def compile_template(source: str) -> jinja2.Template:
    """A chat template, ready to render.

    Raises:
        ArtifactError: the template has a syntax error.
    """
    environment = sandbox.BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["dict"] = Dictionary()
    environment.globals["namespace"] = Namespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ArtifactError(f"chat_template.jinja: line {error.lineno}: {error.message}", "Rebuild") from error


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled chat template and the names in it."""

    compiled: jinja2.Template
    names: TemplateNames

    @classmethod
    def of(cls, source: str) -> ChatTemplate:
        """The template of this source; raises as `compile_template`."""
        compiled = compile_template(source)
        return cls(compiled, read_names(source, compiled.environment))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter, as templates expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def render(
    template: jinja2.Template,
    messages: Sequence[Message],
    special: Mapping[str, str],
    /,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The text of a conversation.

    Args:
        special: the tokenizer's named tokens.
        variables: whatever else the template reads, such as `tools`.

    Raises:
        InputError: the template rejects these messages, or `tools` or `documents` are not lists of objects.
    """
    for name in ("tools", "documents"):
        entries = variables.get(name) or ()
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InputError(f"{name} is not a list of objects", f"Pass {name} as JSON describes them")
    context = {"tools": None, "documents": None, **special, **to_plain(variables)}
    context["messages"] = [name_reasoning(to_plain(message)) for message in messages]
    context["add_generation_prompt"] = add_generation_prompt
    try:
        return sandbox.render(template, context)
    except TooMuchError as error:
        raise InputError(
            f"the chat template computes too much for these messages: {error}",
            "Shorten the conversation; if it is short, do not use this artifact",
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template rejects these messages: {error}", "Check roles and content") from error


def image_text(token: str, tokens: int) -> str:
    """The expansion of one image placeholder: the token, `tokens` times."""
    return token * tokens


def video_text(tokens: tuple[str, str, str], frame_tokens: int, seconds: Sequence[float]) -> str:
    """The expansion of one video placeholder: each frame with its timestamp, between start and end tokens.

    Args:
        tokens: the vision start, video and vision end tokens.
        frame_tokens: number of video tokens per merged frame.
        seconds: the timestamp of each merged frame.
    """
    start, token, end = tokens
    return "".join(f"<{second:.1f} seconds>{start}{token * frame_tokens}{end}" for second in seconds)


def frame_seconds(indices: Sequence[int], fps: float, temporal: int) -> list[float]:
    """The timestamp in seconds of each merged frame: the mean of its first and last frame's times.

    As in `Qwen3VLProcessor._calculate_timestamps`: frame i of the whole video is at i / fps, and the last frame is
    repeated to complete the last group.

    Args:
        indices: positions in the whole video of the frames the model sees.
        temporal: frames per merged frame.
    """
    padded = [*indices, *[*indices[-1:]] * (-len(indices) % temporal)]
    times = [index / fps for index in padded]
    return [(times[i] + times[i + temporal - 1]) / 2 for i in range(0, len(times), temporal)]


def expand_placeholders(text: str, tokens: Sequence[str], replacements: Sequence[tuple[str, str]]) -> str:
    """Replace the placeholders of a rendered prompt, in order.

    Args:
        tokens: every placeholder token of the model.
        replacements: for each picture of the conversation, in order, its placeholder and its expansion.

    Raises:
        InputError: the prompt's placeholders do not match the pictures: the template left a picture out, or a message's
            text contains one.
    """
    placeholder = re.compile("|".join(map(re.escape, tokens)))
    actual = placeholder.findall(text)
    expected = [token for token, _ in replacements]
    if len(actual) < len(expected):
        raise InputError(
            f"the chat template shows {len(actual)} of {len(expected)} pictures", "Put pictures into turns of the user"
        )
    if actual != expected:
        raise InputError(
            f"the prompt has {count_tokens(tokens, actual)} for {count_tokens(tokens, expected)} in the messages",
            "Message texts must not contain these tokens, or send them with plain_text (--plain-text)",
        )
    pieces = iter([replacement for _, replacement in replacements])
    return placeholder.sub(lambda _: next(pieces), text)


def count_tokens(tokens: Sequence[str], placeholders: Sequence[str]) -> str:
    return " and ".join(f"{placeholders.count(token)} {token}" for token in tokens)
