"""PyTorch's attention, in the tower and in the decoder: transformers' eager one, as long as its scores are few.

Eager attention stores every score of a layer several times over. Where that would be too many, a call goes to
transformers' `sdpa`, PyTorch's own attention, which computes the same and stores none.

Source: `eager_attention_forward` of transformers' `modeling_qwen3_vl.py`, `sdpa_attention_forward`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.models.qwen3_vl.modeling_qwen3_vl import eager_attention_forward

ATTENTION = "eager_if_few_scores"  # the implementation's name in transformers
MOST_SCORES = 1 << 28  # of one call of eager attention: 1 GiB in float32, of which it holds two or three


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of queries [B, heads, S, C] to keys and values [B, groups, T, C]: [B, S, heads, C], maybe the scores.

    Args:
        attention_mask: [B, 1, S, T], added to the scores; None in the tower.
    """
    scores = query.shape[:3].numel() * key.shape[2]
    function = eager_attention_forward if scores <= MOST_SCORES else sdpa_attention_forward
    attended: tuple[Tensor, Tensor | None] = function(module, query, key, value, attention_mask, **settings)
    return attended


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)
