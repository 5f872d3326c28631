"""What QwenLM/Qwen3-VL-Embedding makes of a prompt and of hidden states, for models that embed or rerank.

Written apart from `qwen3vl_export/runtime/retrieval.py`, from `qwen3_vl_embedding.py` and `qwen3_vl_reranker.py` of
that repository: its messages, the sizes it gives qwen-vl-utils, its right padding, pooling and score. Templates,
tokens, pixels and hidden states are transformers'.

Legend: B batch, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch.nn import functional as F
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from qwen3vl_export.contract import EMBEDDING
from qwen3vl_export.runtime import Image, Video
from qwen3vl_export.runtime.arrays import Float32, Ints

from ...cases.matrix import Prompt
from .inputs import Inputs
from .pixel_reference import Grid, PixelReference
from .prompt_reference import PromptReference

TOKEN = 32 * 32  # pixels
IMAGE_LIMITS = 4 * TOKEN, 1800 * TOKEN
FRAME_LIMITS = 128 * TOKEN, 768 * TOKEN  # qwen-vl-utils: VIDEO_MIN_TOKEN_NUM, VIDEO_MAX_TOKEN_NUM
LISTED_LIMITS = 4 * TOKEN, 16384 * TOKEN  # qwen-vl-utils: IMAGE_MIN_TOKEN_NUM, IMAGE_MAX_TOKEN_NUM
VIDEO_PIXELS = 7680 * TOKEN  # of a list of frames
MAX_FRAMES = 64
EMBEDDING_SYSTEM = "Represent the user's input."
RERANKER_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
RERANKER_INSTRUCT = "<Instruct>: Given a search query, retrieve relevant candidates that answer the query."


@dataclass(frozen=True)
class Pair:
    """A query and a document, as the runtime takes them."""

    query: dict[str, Any]
    document: dict[str, Any]


def input_of(prompt: Prompt, fps: float) -> dict[str, Any]:
    """A prompt as an input of `embed`: the question is its text."""
    pictures: dict[str, Any] = {"image": [Image(image) for image in prompt.images]}
    if prompt.frames:
        pictures["video"] = Video(prompt.frames, fps)
    return pictures | {"text": prompt.ask}


def pair_of(prompt: Prompt, fps: float) -> Pair:
    """A prompt as an input of `rerank`: its pictures are the document that its question asks for; a question without
    any asks for itself."""
    document = input_of(prompt, fps)
    if prompt.images or prompt.frames:
        del document["text"]
    return Pair({"text": prompt.ask}, document)


class HeadPrompts(PromptReference):
    """The prompts of one checkpoint, whose model has another head than that for answers.

    Args:
        instruction: of an embedding model.
    """

    def __init__(self, checkpoint: Path, fps: float, head: str, instruction: str = EMBEDDING_SYSTEM) -> None:
        super().__init__(checkpoint, fps)
        self.videos.do_sample_frames = False
        self.head = head
        self.instruction = instruction

    def text(self, prompt: Prompt, grids: list[NDArray[np.int64]]) -> str:
        return super().text(replace(prompt, frames=chosen_frames(prompt.frames)), grids)

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        pictures: list[Any] = [{"type": "video"}] * bool(prompt.frames) + [{"type": "image"}] * len(prompt.images)
        if self.head == EMBEDDING:
            return chat(self.instruction, [*pictures, prompt.ask])
        document = pictures or [prompt.ask]
        return chat(RERANKER_SYSTEM, [RERANKER_INSTRUCT, "<Query>:", prompt.ask, "\n<Document>:", *document])


def chat(system: str, content: Sequence[Any]) -> list[dict[str, Any]]:
    items = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": items},
    ]


class HeadPixels(PixelReference):
    """The pictures of one checkpoint by the sizes of the public code, whatever its processor says."""

    def __init__(self, checkpoint: Path, fps: float) -> None:
        super().__init__(checkpoint, fps)
        self.images.size = type(self.images.size)(shortest_edge=IMAGE_LIMITS[0], longest_edge=IMAGE_LIMITS[1])
        self.videos.do_sample_frames = False

    def process_frames(self, frames: Sequence[PILImage.Image], bound: Grid | None) -> tuple[Ints, Float32]:
        frames = chosen_frames(frames)
        if bound is None:
            low, most = FRAME_LIMITS
            high = max(min(most, VIDEO_PIXELS / len(frames) * 2), int(low * 1.05))
            side = self.videos.patch_size * self.videos.merge_size
            listed = smart_resize(frames[0].height, frames[0].width, side, *LISTED_LIMITS)
            height, width = smart_resize(*listed, side, low, high)
            bound = height // self.videos.patch_size, width // self.videos.patch_size
        return super().process_frames(frames, bound)


def chosen_frames(frames: Sequence[PILImage.Image]) -> tuple[PILImage.Image, ...]:
    """At most `MAX_FRAMES` of a list, in pairs: qwen-vl-utils repeats the last one."""
    if len(frames) > MAX_FRAMES:
        frames = [frames[index] for index in np.linspace(0, len(frames) - 1, MAX_FRAMES, dtype=int)]
    return (*frames, *frames[-1:]) if len(frames) % 2 else tuple(frames)


def right_padded(rows: Sequence[Sequence[int]], pad: int, pixel_values: Float32, image_grid_thw: Ints) -> Inputs:
    """The inputs of a batch as the embedder's processor pads them."""
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return Inputs(ids, mask, pixel_values, image_grid_thw)


def last_rows(hidden: Float32, attention_mask: Ints) -> Float32:
    """Of states [B, S, …] padded on either side, those of each row's last token: [B, …]."""
    mask = torch.from_numpy(attention_mask)
    columns = mask.shape[1] - mask.flip(dims=[1]).argmax(dim=1) - 1
    rows: Float32 = torch.from_numpy(hidden)[torch.arange(len(mask)), columns].numpy()
    return rows


def normalized(rows: Float32) -> Float32:
    """Embeddings [B, H] of last hidden states."""
    vectors: Float32 = F.normalize(torch.from_numpy(rows), p=2, dim=-1).numpy()
    return vectors


def scored(logits: Float32) -> Float32:
    """Scores [B] of the logits of yes and no [B, 2]."""
    yes, no = torch.from_numpy(logits).unbind(-1)
    scores: Float32 = torch.sigmoid(yes - no).numpy()
    return scores
