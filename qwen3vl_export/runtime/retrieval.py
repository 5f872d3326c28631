"""Inputs of an embedding model or a reranker as the conversations they were trained with.

Equal to `Qwen3VLEmbedder` and `Qwen3VLReranker` of QwenLM/Qwen3-VL-Embedding (8ce3aab): their system messages, the
order of videos, images and texts, the frames of a video by qwen-vl-utils, and which tokens of a long input are left
out. The pixel budget of pictures is in the artifact's own settings.

Knows inputs and messages; nothing about the model's outputs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..contract import Facts
from ..errors import InputError
from .pictures.frames import FrameChoice
from .pictures.images import Image
from .pictures.picture import Picture
from .pictures.pixel_budget import PixelBudget
from .pictures.video import Video
from .prompts.items import Medium, check_keys, pad_to_pairs, read_item
from .prompts.messages import to_mapping

Piece = str | Medium | Mapping[str, Any]
Input = Piece | Sequence[Piece]

EMBEDDING_INSTRUCTION = "Represent the user's input."
RERANKER_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
NOTHING = "NULL"  # what an input without content reads
KEYS = ("text", "image", "video")
EMBEDDING_TOKENS = 8192  # of an input; the rest is left out
RERANKER_TOKENS = 10240  # of a pair before `TURN_END`
TURN_END = 5  # tokens: <|im_end|>, a line break, <|im_start|>, assistant, a line break
FRAMES = FrameChoice(fps=1.0, max_frames=64)  # of a video file
LIST_TOKENS = 7680  # of a list of frames, each pair counted once
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".svg")


def embedding_conversation(given: Input, instruction: str | None, facts: Facts) -> list[dict[str, Any]]:
    """The conversation of one input. An instruction of its own (`{"text": …, "instruction": …}`) goes before the
    common one; a full stop is added to either if it ends without punctuation.

    Raises:
        InputError: a piece that is neither text, image nor video.
    """
    if isinstance(given, Mapping) and "instruction" in given:
        given = dict(given)
        instruction = given.pop("instruction") or instruction
    if instruction is not None and not isinstance(instruction, str):
        raise InputError(f"the instruction is a {type(instruction).__name__}", "Pass a string")
    instruction = (instruction or "").strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    return conversation(instruction or EMBEDDING_INSTRUCTION, ordered(given, facts))


def reranker_conversation(query: Input, document: Input, instruction: str | None, facts: Facts) -> list[dict[str, Any]]:
    """The conversation of one pair.

    Raises:
        InputError: as `embedding_conversation`.
    """
    asked = f"<Instruct>: {instruction or RERANKER_INSTRUCTION}"
    parts = [asked, "<Query>:", *ordered(query, facts), "\n<Document>:", *ordered(document, facts)]
    return conversation(JUDGE, parts)


def conversation(system: str, content: Sequence[str | Medium]) -> list[dict[str, Any]]:
    """One system message and one of the user."""
    return [{"role": "system", "content": [system]}, {"role": "user", "content": list(content)}]


def ordered(given: Input, facts: Facts) -> list[str | Medium]:
    """Videos, then images, then texts of an input, each in the order given; `NOTHING` if there are none."""
    pieces = pieces_of(given)
    videos = [piece for piece in pieces if is_video(piece)]
    images = [piece for piece in pieces if isinstance(piece, Image | Picture) and not is_video(piece)]
    texts = [piece for piece in pieces if isinstance(piece, str)]
    shown = [sampled(video, facts) if isinstance(video, Video) else video for video in videos]
    return [*shown, *images, *texts] or [NOTHING]


def is_video(piece: str | Medium) -> bool:
    return piece.is_video if isinstance(piece, Picture) else isinstance(piece, Video)


def pieces_of(given: Input) -> list[str | Medium]:
    """The texts, images and videos of an input in any of its forms.

    Raises:
        InputError: another form.
    """
    if isinstance(given, str | Medium):
        return [given]
    given = to_mapping(given)
    if isinstance(given, Mapping) and "type" not in given:
        check_keys(given, KEYS, "an input")
        return pieces_by_key({key: value for key, value in given.items() if value is not None})
    parts = [given] if isinstance(given, Mapping) else given
    if not isinstance(parts, Sequence) or isinstance(parts, bytes):
        raise InputError(
            f"an input is a {type(given).__name__}", "Pass text, Image(...), Video(...), a list of them, or a mapping"
        )
    read = [read_item(to_mapping(part)) for part in parts]
    return [item["text"] if medium is None else medium for item, medium in read]


def pieces_by_key(given: Mapping[str, Any]) -> list[str | Medium]:
    """Those of a mapping with the keys `text`, `image` and `video`, each a value or a list of values."""
    texts, images = as_list(given.get("text", ())), as_list(given.get("image", ()))
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"the text of an input is a {type(text).__name__}", "Pass a string, or a list of them")
    video = given.get("video", ())
    videos = [video] if is_one_video(video) else as_list(video)
    return [
        *(video if isinstance(video, Video | Picture) else Video(video) for video in videos),
        *(image if isinstance(image, Image | Picture) else Image(image) for image in images),
        *texts,
    ]


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def is_one_video(value: Any) -> bool:
    """Whether a value is a video itself and no list of videos: a list that begins with a picture is one of frames."""
    if not isinstance(value, list | tuple):
        return True
    first = value[0] if value else None
    if isinstance(first, str | Path):
        return str(first).split("?")[0].lower().endswith(IMAGE_SUFFIXES)
    return isinstance(first, PIL.Image.Image | np.ndarray | Image)


def sampled(video: Video, facts: Facts) -> Video:
    """A video with the frames and the size that the public code chooses, where it has no settings of its own."""
    if (video.sample_fps, video.choice, video.positions, video.budget) != (None, None, None, None):
        return video
    if not video.is_list:
        return replace(video, choice=FRAMES, budget=PixelBudget())
    frames: Any = video.source
    most = FRAMES.max_frames or len(frames)
    if len(frames) > most:
        frames = [frames[index] for index in np.linspace(0, len(frames) - 1, most, dtype=int)]
    frames = pad_to_pairs(frames)
    return replace(video, source=frames, positions=tuple(range(len(frames))), budget=list_budget(facts))


def list_budget(facts: Facts) -> PixelBudget:
    """Of a list of frames."""
    return PixelBudget(total_pixels=LIST_TOKENS * (facts.patch_size * facts.spatial_merge_size) ** 2)


def shorten_embedding(ids: list[int]) -> list[int]:
    """The tokens of an input that are read."""
    return ids[:EMBEDDING_TOKENS]


def shorten_pair(ids: list[int], special: Collection[int]) -> list[int]:
    """The tokens of a pair that are read: all special ones, the first of the others, and those that end the turn."""
    body, end = ids[:-TURN_END], ids[-TURN_END:]
    if len(body) <= RERANKER_TOKENS:
        return ids
    room = RERANKER_TOKENS - sum(token in special for token in body)
    ordinary = 0
    kept = []
    for token in body:
        if token in special:
            kept.append(token)
        elif ordinary < room:
            kept.append(token)
            ordinary += 1
    return kept + end
