"""Content items of messages: text, pictures and videos as the OpenAI API, transformers and qwen-vl-utils write them.

`TYPES` says which keys an item of each type may have. Every key is honoured or refused by its name, none is ignored.

Knows the keys of items; nothing about messages, files or pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..pictures.frames import LARGEST, PAIR, FrameChoice, shorten
from ..pictures.images import Image
from ..pictures.picture import Picture
from ..pictures.pixel_budget import PixelBudget
from ..pictures.video import FrameList, Video, require_frames

Medium = Image | Video | Picture


@dataclass(frozen=True)
class ItemType:
    """The keys of one type of item: those that hold its data, of which it has exactly one, and its options."""

    data: tuple[str, ...]
    options: tuple[str, ...] = ()


SIZE = tuple(field.name for field in fields(PixelBudget))
OF_FILES = tuple(field.name for field in fields(FrameChoice))
OF_LISTS = ("fps", "sample_fps", "raw_fps", "frames_indices", "total_num_frames")
TEXT = ItemType(("text",))
IMAGE = ItemType(("image", "image_url", "path", "url", "base64"), tuple(key for key in SIZE if key != "total_pixels"))
VIDEO = ItemType(("video", "video_url", "frames", "path", "url"), tuple(dict.fromkeys((*SIZE, *OF_FILES, *OF_LISTS))))
TYPES = {"text": TEXT, "image": IMAGE, "image_url": IMAGE, "video": VIDEO, "video_url": VIDEO}
KEYS = frozenset(key for kind in TYPES.values() for key in ("type", *kind.data, *kind.options))
DETAILS = ("auto", "high")  # what the checkpoint's own pixel budget amounts to


def read_item(part: Any, also: Collection[str] = ()) -> tuple[dict[str, Any], Medium | None]:
    """An item as the chat template reads it, and its picture or video.

    Args:
        also: further keys, which the template reads.

    Raises:
        InputError: an unknown type or key, no data or too much, or an option that cannot be used.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}, None
    if isinstance(part, Medium):
        is_video = part.is_video if isinstance(part, Picture) else isinstance(part, Video)
        key = "video" if is_video else "image"
        return {"type": key, key: f"<{key}>"}, part
    if not isinstance(part, Mapping):
        raise InputError(f"a message holds a {type(part).__name__}", "Use text, Image(...) or Video(...)")
    part = {key: value for key, value in part.items() if value is not None}
    name = part.get("type", next((name for name in TYPES if name in part), None))
    if not isinstance(name, str) or name not in TYPES:
        raise InputError(f"a message holds an item of type {name!r}", f"Known types: {', '.join(TYPES)}")
    kind = TYPES[name]
    check_keys(part, ("type", *kind.data, *kind.options), f"an item of type {name!r}", also)
    given = [key for key in kind.data if key in part]
    if not given:
        raise InputError(f"a message holds an item of type {name!r} without data", f"Give {' or '.join(kind.data)}")
    if len(given) > 1:
        raise InputError(f"an item of type {name!r} has both {given[0]} and {given[1]}", "Give one of them")
    if kind is not TEXT:
        medium = read_image(part, given[0]) if kind is IMAGE else read_video(part, given[0])
        key = "image" if kind is IMAGE else "video"
        return {**part, given[0]: f"<{key}>", "type": key}, medium
    if not isinstance(part["text"], str):
        raise InputError(f"the text of a message is a {type(part['text']).__name__}", "Pass a string")
    return part, None


def check_keys(part: Mapping[str, Any], known: Sequence[str], what: str, also: Collection[str] = ()) -> None:
    """Refuse keys that are neither `known` nor `also`.

    Raises:
        InputError: there is one.
    """
    for key in part:
        if key not in known and key not in also:
            raise InputError(f"{what} has an unknown key {key!r}", f"Known keys: {', '.join(known)}")


def read_source(part: Mapping[str, Any], key: str) -> Any:
    """The data of a picture; `{"url": ...}` of the OpenAI API is its URL."""
    source = part[key]
    if not key.endswith("_url") or not isinstance(source, Mapping):
        return source
    source = {name: value for name, value in source.items() if value is not None}
    check_keys(source, ("url", "detail") if key == "image_url" else ("url",), key)
    if source.get("detail", "auto") not in DETAILS:
        raise InputError(f"{key}: detail is {source['detail']!r}", "Use 'auto' or 'high', or give max_pixels")
    if "url" not in source:
        raise InputError(f"{key} has no url", f'Expected "{key}": {{"url": ...}}')
    return source["url"]


def read_image(part: Mapping[str, Any], key: str) -> Image | Picture:
    source = read_source(part, key)
    size = {name: part[name] for name in SIZE if name in part}
    if isinstance(source, Picture) or (isinstance(source, Image) and source.budget is not None):
        refuse_options(list(size), "a picture that has its size already")
        return source
    if isinstance(source, str) and key == "base64" and source[:5].lower() != "data:":
        source = f"data:;base64,{source}"
    image = source if isinstance(source, Image) else Image(source)
    return replace(image, budget=PixelBudget(**size)) if size else image


def read_video(part: Mapping[str, Any], key: str) -> Video | Picture:
    source = read_source(part, key)
    options = {name: part[name] for name in VIDEO.options if name in part}
    if isinstance(source, Video | Picture):
        refuse_options(list(options), "a video that has its options already")
        return source
    size = {name: options.pop(name) for name in SIZE if name in options}
    budget = PixelBudget(**size) if size else None
    if isinstance(source, str | bytes | Path):
        refuse_options([name for name in options if name not in OF_FILES], "a video file, they are for lists of frames")
        if "fps" in options:
            options["fps"] = read_rate("fps", options["fps"])
        return Video(source, budget=budget, choice=FrameChoice(**options) if options else None)
    refuse_options([name for name in options if name not in OF_LISTS], "a list of frames, they are for video files")
    return replace(read_frames(require_frames(source), options), budget=budget)


def read_frames(frames: FrameList, options: Mapping[str, Any]) -> Video:
    """A list of frames with its rate.

    With `frames_indices`, a name of transformers' `VideoMetadata`, or with `sample_fps` or `raw_fps`, names of
    qwen-vl-utils, the frames were chosen before and all of them are shown. In the second case frame i is at
    i / `raw_fps` seconds.
    """
    rates = {name: read_rate(name, options[name]) for name in ("fps", "sample_fps", "raw_fps") if name in options}
    total = options.get("total_num_frames", len(frames))
    if "frames_indices" in options:
        refuse_options([name for name in rates if name != "fps"], "frames_indices")
        if "fps" not in rates:
            raise InputError("frames_indices without fps", "Give the rate of the whole video as fps")
        return Video(frames, rates["fps"], positions=read_positions(options["frames_indices"], len(frames), total))
    if total != len(frames):
        raise InputError(
            f"total_num_frames is {shorten(total)}, {len(frames)} frames are given", "Give frames_indices too"
        )
    if "fps" in rates or not rates:
        refuse_options([name for name in rates if name != "fps"], "fps")
        return Video(frames, rates.get("fps", 2.0))
    even = pad_to_pairs(frames)
    return Video(even, rates.get("raw_fps", rates.get("sample_fps", 2.0)), positions=tuple(range(len(even))))


def pad_to_pairs(frames: FrameList) -> FrameList:
    """The frames, the last one twice if their number is odd."""
    if len(frames) % PAIR == 0:
        return frames
    return np.concatenate([frames, frames[-1:]]) if isinstance(frames, np.ndarray) else [*frames, frames[-1]]


def read_positions(indices: Any, count: int, total: Any) -> tuple[int, ...]:
    """`frames_indices`: positions in the whole video, ascending, one for each frame.

    Raises:
        InputError: they are something else, or not below `total`, the number of frames of the whole video.
    """
    try:
        positions = tuple(operator.index(index) for index in indices)
        ascending = all(low <= high for low, high in zip((0, *positions), positions, strict=False))
        end = LARGEST if total == count else min(total, LARGEST)
        if len(positions) == count and ascending and all(position < end for position in positions):
            return positions
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(
        f"frames_indices do not fit {count} frames of a video of {shorten(total)}",
        "Give one position for each frame, ascending and below total_num_frames",
    )


def read_rate(name: str, value: Any) -> float:
    """Frames per second; a number in a string, as in Qwen's examples, is a number."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} is {shorten(value)}", "Use a number of frames per second")


def refuse_options(names: Sequence[str], beside: str) -> None:
    if names:
        raise InputError(f"{', '.join(names)} beside {beside}", "Leave one of them out")
