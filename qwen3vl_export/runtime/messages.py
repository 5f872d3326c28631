"""What a caller may say, made into one form: messages whose content is a list of text and picture items.

Accepted: a string, an `Image`, `Video` or `Picture`, a list of those (all one user turn), or messages with `role` and
`content` as transformers and the OpenAI API write them. Pictures leave the messages and are listed in order of
appearance.

Knows the forms of messages; nothing about templates or pixels.
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
Part = str | Medium
Content = Part | Sequence[Part] | Sequence[Mapping[str, Any]]
Message = Mapping[str, Any]

IMAGE_KEYS = ("image", "path", "url", "base64")
VIDEO_KEYS = ("video", "frames", "path", "url")


def as_messages(content: Content) -> list[Message]:
    """A conversation from any accepted form.

    Raises:
        InputError: nothing was said, or an item is of no known form.
    """
    if isinstance(content, Part):
        return [{"role": "user", "content": [content]}]
    items: list[Any] = list(content)
    if not items:
        raise InputError("the conversation is empty", "Pass a question, or messages")
    if all(isinstance(item, Mapping) and "role" in item for item in items):
        return items
    return [{"role": "user", "content": items}]


def split_media(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Medium]]:
    """Messages a chat template can read, `{"type": "image"}` standing for each picture, and the pictures in order.

    Raises:
        InputError: an item of a message's content is of no known form.
    """
    media: list[Medium] = []
    plain: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            parts = content if isinstance(content, Sequence) else [content]
            content = [item_of(part, media) for part in parts]
        plain.append({**message, "content": content})
    return plain, media


def item_of(part: Any, media: list[Medium]) -> dict[str, Any]:
    """One content item for the template; a picture in it is appended to `media`."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    medium = part if isinstance(part, Medium) else medium_of(part)
    if medium is None:
        return dict(part)
    media.append(medium)
    is_video = medium.is_video if isinstance(medium, Picture) else isinstance(medium, Video)
    return {"type": "video" if is_video else "image"}


def medium_of(part: Any) -> Medium | None:
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
        return video_of(target["url"] if isinstance(target, Mapping) else target, part.get("fps"))
    if kind == "video" or "video" in part:
        return video_of(first_of(part, VIDEO_KEYS), part.get("fps"))
    if kind == "image" or "image" in part:
        source = first_of(part, IMAGE_KEYS)
        if source is part.get("base64") and isinstance(source, str) and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        return source if isinstance(source, Image | Picture) else Image(source)
    raise InputError(
        f"a message holds an item of type {kind!r}", "Known types: text, image, image_url, video, video_url"
    )


def video_of(source: Any, fps: float | None) -> Video | Picture:
    """`fps` beside a list of frames is their rate; beside a file, how many a second the model sees, as in
    qwen-vl-utils."""
    if isinstance(source, Video | Picture):
        return source
    if fps is None:
        return Video(source)
    if isinstance(source, str | bytes | Path):
        return Video(source, sample_fps=float(fps))
    return Video(source, float(fps))


def first_of(part: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if part.get(key) is not None:
            return part[key]
    raise InputError(f"a message holds an item of type {part.get('type')!r} without data", f"Give {' or '.join(keys)}")
