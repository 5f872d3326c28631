"""What both sides of a comparison get, and how transformers' model takes it.

Legend: B batch, S tokens, P patches, I images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime.arrays import Float32, Ints

MOST_LOGITS = 160_000_000  # of a prompt, on either side: 640 MB in float32, 1,053 tokens of a vocabulary of 151,936


@dataclass(frozen=True)
class Inputs:
    """What both sides get. `image_grid_thw` lists images and videos in the order they appear in the prompts."""

    input_ids: Ints  # [B, S]
    attention_mask: Ints  # [B, S], zeros on the left
    pixel_values: Float32  # [P, patch_dim]
    image_grid_thw: Ints  # [I, 3]

    @cached_property
    def key(self) -> str:
        return array_key(self.input_ids, self.attention_mask, self.pixel_values, self.image_grid_thw)


def tokens_compared(rows: NDArray[Any], vocab_size: int) -> int:
    """Of how many last tokens of each row of a prompt [B, S, ...] the logits are compared: all, unless it is long."""
    return min(int(rows.shape[1]), max(1, MOST_LOGITS // (len(rows) * vocab_size)))


def array_key(*arrays: NDArray[Any]) -> str:
    """sha256 over shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def model_arguments(inputs: Inputs, config: Any) -> dict[str, Any]:
    """The keyword arguments of transformers' model, pictures apart from videos; `config` is the model's."""
    kinds = np.zeros_like(inputs.input_ids)
    kinds[inputs.input_ids == config.image_token_id] = 1
    kinds[inputs.input_ids == config.video_token_id] = 2
    kwargs: dict[str, Any] = {
        "input_ids": torch.from_numpy(inputs.input_ids),
        "attention_mask": torch.from_numpy(inputs.attention_mask),
        "mm_token_type_ids": torch.from_numpy(kinds),
    }
    row_kinds = np.array(kinds_of_rows(kinds, inputs.image_grid_thw), np.int64)
    patch_kinds = np.repeat(row_kinds, inputs.image_grid_thw.prod(1))
    for kind, pixels, grid in (
        (1, "pixel_values", "image_grid_thw"),
        (2, "pixel_values_videos", "video_grid_thw"),
    ):
        if (row_kinds == kind).any():
            kwargs[pixels] = torch.from_numpy(inputs.pixel_values[patch_kinds == kind])
            kwargs[grid] = torch.from_numpy(inputs.image_grid_thw[row_kinds == kind])
    return kwargs


def kinds_of_rows(kinds: Ints, image_grid_thw: Ints) -> list[int]:
    """1 (image) or 2 (video) for each row of the grid, read from the prompts.

    A run of equal visual tokens is one image or one frame of a video, because markers separate them.

    Args:
        kinds: [B, S] of 0 text, 1 image, 2 video.

    Raises:
        ParityError: the prompts and the grid do not have the same pictures.
    """
    runs = [kind for row in kinds.tolist() for kind, _ in groupby(row) if kind]
    rows, run = [], 0
    for t in image_grid_thw[:, 0].tolist():
        if run >= len(runs):
            raise ParityError(f"image_grid_thw has {len(image_grid_thw)} rows, the prompts hold fewer pictures")
        rows.append(runs[run])
        run += t if runs[run] == 2 else 1
    if run != len(runs):
        raise ParityError(f"the prompts hold {len(runs)} pictures and frames, image_grid_thw accounts for {run}")
    return rows
