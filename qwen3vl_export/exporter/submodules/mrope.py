"""M-RoPE in the decoder's graph: transformers' own frequencies, each of which reads its own position axis.

Source: transformers `Qwen3VLTextRotaryEmbedding`, `modeling_rope_utils.dynamic_rope_update`.

Legend: B batch, S new tokens, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..checkpoint.rotary import DYNAMIC, LONGROPE, text_rotary


def mrope_axes(sections: list[int], count: int) -> list[int]:
    """Which of the (t, h, w) axes rotates each frequency: T H W T H W … while sections last, then T.

    Args:
        sections: frequencies per axis, e.g. [24, 20, 20].
        count: all frequencies, E / 2.
    """
    axes = [0] * count
    for axis in (1, 2):
        for index in range(axis, min(sections[axis] * 3, count), 3):
            axes[index] = axis
    return axes


class MultimodalRotary(nn.Module):
    """position_ids int64 [3, B, S] -> cos, sin [B, S, E]; angles in float32, nothing baked per position.

    The two types whose frequencies depend on the length take it from the largest position of each call, as transformers
    does at the first sequence after loading: "dynamic" computes frequencies anew past `max_position_embeddings`,
    "longrope" has two sets of them.

    Args:
        config: the text configuration.
        dtype: of cos and sin.
    """

    inv_freq: Tensor
    long_inv_freq: Tensor
    axes: Tensor

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        rotary = text_rotary(config)
        self.config = config
        self.rope_type: str = rotary.rope_type
        self.scaling = float(rotary.attention_scaling)
        axes = mrope_axes(rotary.mrope_section, len(rotary.inv_freq))
        self.register_buffer("inv_freq", rotary.inv_freq, persistent=False)
        self.register_buffer("axes", torch.tensor(axes), persistent=False)
        if self.rope_type == LONGROPE:
            longer = config.rope_parameters["original_max_position_embeddings"] + 1
            long_inv_freq, _ = ROPE_INIT_FUNCTIONS[LONGROPE](config, seq_len=longer)
            self.register_buffer("long_inv_freq", long_inv_freq, persistent=False)
        self.dtype = dtype

    def frequencies(self, position_ids: Tensor) -> Tensor:
        """float32 [E / 2] for a call with these positions."""
        if self.rope_type not in (DYNAMIC, LONGROPE):
            return self.inv_freq
        length = position_ids.max() + 1
        if self.rope_type == LONGROPE:
            limit = self.config.rope_parameters["original_max_position_embeddings"]
            return torch.where(length > limit, self.long_inv_freq, self.inv_freq)
        stretched, _ = ROPE_INIT_FUNCTIONS[DYNAMIC](self.config, seq_len=length)
        return torch.where(length > self.config.max_position_embeddings, stretched, self.inv_freq)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        positions = position_ids.index_select(0, self.axes)  # [E / 2, B, S]
        angles = positions.permute(1, 2, 0).to(torch.float32) * self.frequencies(position_ids)
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if self.scaling != 1:
            cos, sin = cos * self.scaling, sin * self.scaling
        return cos.to(self.dtype), sin.to(self.dtype)
