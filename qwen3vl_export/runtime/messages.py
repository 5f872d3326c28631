"""Normalizes questions: messages whose content is a list of text and picture items.

Accepted: a string, an `Image`, `Video` or `Picture`, a list of those (one user turn), or messages with `role` and
`content` in the formats of transformers and the OpenAI API. Pictures are taken out of the messages and listed in order
of appearance.

Knows message formats; nothing about templates or pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .images import Image
from .picture import Picture
from .video import Video

Medium = Image | Video | Picture
ContentItem = str | Medium
Content = ContentItem | Sequence[ContentItem] | Sequence[Mapping[str, Any]]
Message = Mapping[str, Any]

IMAGE_KEYS = ("image", "path", "url", "base64")
VIDEO_KEYS = ("video", "frames", "path", "url")


def as_messages(content: Content) -> list[Message]:
    """A conversation, from any accepted format.

    Raises:
        InputError: `content` is empty.
    """
    if isinstance(content, ContentItem):
        return [{"role": "user", "content": [content]}]
    items: list[Any] = list(content)
    if not items:
        raise InputError("the conversation is empty", "Pass a question, or messages")
    if all(isinstance(item, Mapping) and "role" in item for item in items):
        return items
    return [{"role": "user", "content": items}]


def split_media(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Medium]]:
    """Messages for a chat template, with `{"type": "image"}` or `{"type": "video"}` for each picture, and the pictures.

    Raises:
        InputError: an item of a message's content has an unknown format.
    """
    media: list[Medium] = []
    template_messages: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            items = content if isinstance(content, Sequence) else [content]
            content = [to_template_item(item, media) for item in items]
        template_messages.append({**message, "content": content})
    return template_messages, media


def to_template_item(part: Any, media: list[Medium]) -> dict[str, Any]:
    """One content item for the template; a picture in it is appended to `media`."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    medium = part if isinstance(part, Medium) else read_medium(part)
    if medium is None:
        return dict(part)
    media.append(medium)
    is_video = medium.is_video if isinstance(medium, Picture) else isinstance(medium, Video)
    return {"type": "video" if is_video else "image"}


def read_medium(part: Any) -> Medium | None:
    """The picture in a mapping such as `{"type": "image", "image": ...}`; None if it is text."""
    if not isinstance(part, Mapping):
        raise InputError(f"a message holds a {type(part).__name__}", "Use text, Image(...) or Video(...)")
    kind = part.get("type")
    if kind == "text" or (kind is None and "text" in part):
        return None
    if kind == "image_url" or "image_url" in part:
        target = part["image_url"]
        return Image(target["url"] if isinstance(target, Mapping) else target)
    if kind == "video_url" or "video_url" in part:
        target = part["video_url"]
        return read_video(target["url"] if isinstance(target, Mapping) else target, part.get("fps"))
    if kind == "video" or "video" in part:
        return read_video(first_value(part, VIDEO_KEYS), part.get("fps"))
    if kind == "image" or "image" in part:
        source = first_value(part, IMAGE_KEYS)
        if source is part.get("base64") and isinstance(source, str) and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        return source if isinstance(source, Image | Picture) else Image(source)
    raise InputError(
        f"a message holds an item of type {kind!r}", "Known types: text, image, image_url, video, video_url"
    )


def read_video(source: Any, fps: float | None) -> Video | Picture:
    """A video; as in qwen-vl-utils, `fps` is the rate of a list of frames, but the rate to sample a file at."""
    if isinstance(source, Video | Picture):
        return source
    if fps is None:
        return Video(source)
    if isinstance(source, str | bytes | Path):
        return Video(source, sample_fps=float(fps))
    return Video(source, float(fps))


def first_value(part: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of `keys` that is not None; an `InputError` if there is none."""
    for key in keys:
        if part.get(key) is not None:
            return part[key]
    raise InputError(f"a message holds an item of type {part.get('type')!r} without data", f"Give {' or '.join(keys)}")
