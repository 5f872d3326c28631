"""Attention for tracing: the ops that attention puts into the graph, per target.

Vision attention is one placeholder op, `GridAttention`, that `lowering/` replaces later. Text attention is registered
with `AttentionInterface`, the extension point of transformers, whose layers call it unchanged. It becomes
`GroupQueryAttention` (ort) or MatMul and Softmax (portable).

Legend: B batch, N query heads, K key/value heads, S new tokens, T all tokens, E head size, P patches, D vision width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from .geometry import PLACEHOLDER_DOMAIN

GRID_ATTENTION = "GridAttention"

TEXT_ATTENTION = {"ort": "onnx_group_query", "portable": "onnx_eager"}


class LayerCache:
    """The cache of one traced forward pass: past keys and values in, present keys and values out.

    The HF layers get no cache of their own and pass this one on as a keyword; the attention functions concatenate past
    and new.
    """

    def __init__(self, past: list[tuple[Tensor, Tensor]]) -> None:
        self.past = past
        self.present: list[tuple[Tensor, Tensor]] = []


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Rotate every head (half-split layout) in float32, as the standard op `RotaryEmbedding` (opset 23).

    Source: transformers `apply_rotary_pos_emb_vision`.

    Args:
        x: [P, heads * E].
        rotary: cos and sin, float32 [P, E / 2].

    Returns:
        float32 [P, heads * E].
    """
    cos, sin = rotary
    rows = x.to(torch.float32)[None]
    rotated = torch.onnx.ops.rotary_embedding(rows, cos[None], sin[None], num_heads=heads)
    return rotated[0]


def rotate_by_table(x: Tensor, rotary: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """The same by `com.microsoft::RotaryEmbedding`, which is not bound to opset 23; row p of the table rotates patch p.

    The operator reads the rows from a position on, which is 0.
    """
    cos, sin = rotary
    rows = x.to(torch.float32)[None]
    rotated = torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        (rows, torch.zeros(1, dtype=torch.int64), cos, sin),
        {"num_heads": heads},
        dtype=torch.float32,
        shape=rows.shape,
        version=1,
    )
    return rotated[0]


def grid_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, heads: int, scale: float) -> Tensor:
    """Block attention of the vision tower: every frame of every image attends to itself only.

    float32 whatever the model's dtype: onnxruntime's MultiHeadAttention has no other on CPU, and scores need the range.

    Args:
        query, key, value: [P, heads * E].
        segments: of `geometry.py`, int64 [M, 3] or [M, 4]; one constant row if the encoder takes one grid only.

    Returns:
        [P, heads * E] in the dtype of `value`.
    """
    patches, width = value.shape
    out = torch.onnx.ops.symbolic(
        f"{PLACEHOLDER_DOMAIN}::{GRID_ATTENTION}",
        (query.to(torch.float32), key.to(torch.float32), value.to(torch.float32), segments),
        {"num_heads": heads, "head_size": width // heads, "scale": float(scale)},
        dtype=torch.float32,
        shape=(patches, width),
        version=1,
    )
    return out.to(value.dtype)


def group_query_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`com.microsoft::GroupQueryAttention` over past and new keys; the op is causal by definition.

    A row's keys are the first `seqlens_k + 1` of its cache: tokens are at the start of their row, no mask is added.

    Args:
        query, key, value: [B, N, S, E], [B, K, S, E], [B, K, S, E], rotated.
        attention_mask: None.

    Returns:
        [B, S, N * E].
    """
    batch, heads, new, size = query.shape
    key_heads = key.shape[1]
    cache: LayerCache = kwargs["layer_cache"]
    past_key, past_value = cache.past[module.layer_idx]
    total = past_key.shape[2] + new
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (
            query.transpose(1, 2).reshape(batch, new, heads * size),
            key.transpose(1, 2).reshape(batch, new, key_heads * size),
            value.transpose(1, 2).reshape(batch, new, key_heads * size),
            past_key,
            past_value,
            kwargs["seqlens_k"],
            kwargs["total_sequence_length"],
        ),
        {"num_heads": heads, "kv_num_heads": key_heads, "scale": float(kwargs["scaling"])},
        dtypes=(query.dtype, key.dtype, value.dtype),
        shapes=(
            (batch, new, heads * size),
            (batch, key_heads, total, size),
            (batch, key_heads, total, size),
        ),
        version=1,
    )
    cache.present.append((present_key, present_value))
    return out, None


def eager_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """The same attention in standard ops; see `group_query_attention`.

    Args:
        attention_mask: float [B, 1, S, T], causal, added to the scores.

    Source: transformers `modeling_qwen3_vl.eager_attention_forward`.
    """
    batch, heads, new, size = query.shape
    cache: LayerCache = kwargs["layer_cache"]
    past_key, past_value = cache.past[module.layer_idx]
    key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    cache.present.append((key, value))
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, key.shape[1], groups, new, size)  # query head n reads key head n // groups
    scores = grouped @ key.transpose(2, 3).unsqueeze(2) * kwargs["scaling"] + attention_mask.unsqueeze(1)
    weights = scores.to(torch.float32).softmax(-1).to(query.dtype)
    out = (weights @ value.unsqueeze(2)).reshape(batch, heads, new, size)
    return out.transpose(1, 2), None


AttentionInterface.register(TEXT_ATTENTION["ort"], group_query_attention)
AttentionInterface.register(TEXT_ATTENTION["portable"], eager_attention)
