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
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from qwen3vl_export.contract import TEXT
from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime.arrays import Float32, Ints

MOST_LOGITS = 160_000_000  # of a prompt, on either side: 640 MB in float32, 1,053 tokens of a vocabulary of 151,936


@dataclass(frozen=True)
class Inputs:
    """What both sides get. `image_grid_thw` lists images and videos in the order they appear in the prompts."""

    input_ids: Ints  # [B, S]
    attention_mask: Ints  # [B, S], zeros where it is padded
    pixel_values: Float32  # [P, patch_dim]
    image_grid_thw: Ints  # [I, 3]

    @classmethod
    def of_pictures(cls, pixel_values: Float32, image_grid_thw: Ints) -> Inputs:
        """Pictures without a prompt."""
        empty = np.empty((0, 0), np.int64)
        return cls(empty, empty, pixel_values, image_grid_thw)

    @cached_property
    def key(self) -> str:
        return array_key(self.input_ids, self.attention_mask, self.pixel_values, self.image_grid_thw)

    @cached_property
    def pictures_key(self) -> str:
        return array_key(self.pixel_values, self.image_grid_thw)

    @property
    def has_pictures(self) -> bool:
        return bool(self.image_grid_thw.size)

    def followed_by(self, *texts: Ints) -> Inputs:
        """These prompts with texts [B, T] after them, one after another."""
        ids = np.concatenate([self.input_ids, *texts], axis=1)
        added = np.ones((len(ids), ids.shape[1] - self.input_ids.shape[1]), self.attention_mask.dtype)
        mask = np.concatenate([self.attention_mask, added], axis=1)
        return Inputs(ids, mask, self.pixel_values, self.image_grid_thw)


def tokens_compared(rows: NDArray[Any], vocab_size: int, head: str = TEXT) -> int:
    """Of how many last tokens of each row of a prompt [B, S, ...] the logits are compared: all, unless it is long.

    What other heads return of a token is no wider than its row, and compared of every token.
    """
    return count_compared(len(rows), int(rows.shape[1]), vocab_size, head)


def count_compared(batch: int, tokens: int, vocab_size: int, head: str = TEXT) -> int:
    """`tokens_compared` of a prompt [B, S, ...] by its size."""
    return tokens if head != TEXT else min(tokens, max(1, MOST_LOGITS // (batch * vocab_size)))


def array_key(*arrays: NDArray[Any]) -> str:
    """sha256 over shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def model_arguments(
    inputs: Inputs, config: Any, device: torch.device, features: Float32 | None = None
) -> dict[str, Any]:
    """The keyword arguments of transformers' model, pictures apart from videos.

    Args:
        config: the model's.
        features: [N, W] of the tower for every picture and frame, in the order of the grid: given to the model in place
            of pixels.
    """
    kinds = np.zeros_like(inputs.input_ids)
    kinds[inputs.input_ids == config.image_token_id] = 1
    kinds[inputs.input_ids == config.video_token_id] = 2
    arrays: dict[str, Any] = {
        "input_ids": inputs.input_ids,
        "attention_mask": inputs.attention_mask,
        "mm_token_type_ids": kinds,
    }
    rows = np.array(kinds_of_rows(kinds, inputs.image_grid_thw), np.int64)
    patches = inputs.image_grid_thw.prod(1)
    encoded: dict[str, Any] = {}
    for kind, name, pixels, grid in (
        (1, "image", "pixel_values", "image_grid_thw"),
        (2, "video", "pixel_values_videos", "video_grid_thw"),
    ):
        if not (rows == kind).any():
            continue
        arrays[grid] = inputs.image_grid_thw[rows == kind]
        if features is None:
            arrays[pixels] = inputs.pixel_values[np.repeat(rows == kind, patches)]
        else:
            tokens = patches // config.vision_config.spatial_merge_size**2
            of_kind = torch.from_numpy(features[np.repeat(rows == kind, tokens)]).to(device)
            encoded[name] = as_tower_output(of_kind, tokens[rows == kind].tolist(), config.text_config.hidden_size)
    kwargs: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return {**kwargs, "mm_encoder_outputs": encoded} if encoded else kwargs


def as_tower_output(features: Tensor, tokens: list[int], width: int) -> BaseModelOutputWithDeepstackFeatures:
    """Wide features [N, W] in the form in which transformers' tower gives them to its model, picture by picture."""
    merged, *maps = (torch.split(part, tokens) for part in torch.split(features, width, dim=-1))
    return BaseModelOutputWithDeepstackFeatures(pooler_output=merged, deepstack_features=maps)


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
