"""Routed experts for tracing: one placeholder op, `Experts`, that `lowering/` replaces per target later.

It is registered with `ExpertsInterface`, the extension point of transformers, whose blocks stay unchanged: the router
(float32 softmax, top k, normalised) is traced from `Qwen3VLMoeTextTopKRouter` itself, and
`Qwen3VLMoeTextDecoderLayer` decides which layers have experts (`mlp_only_layers`, `decoder_sparse_step`).

Legend: N tokens of all rows of the batch, H hidden size, E experts, K of them chosen per token, I their inner size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .geometry import PLACEHOLDER_DOMAIN

EXPERTS = "Experts"
EXPERTS_IMPLEMENTATION = "onnx_experts"


def experts_placeholder(module: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Each token's K experts, `down @ (silu(gate @ x) * (up @ x))`, summed by their shares.

    Source: transformers `Qwen3VLMoeTextExperts.forward`.

    Args:
        module: the experts, with `gate_up_proj` [E, 2 * I, H], gate rows first, and `down_proj` [E, H, I].
        hidden: [N, H].
        chosen: int64 [N, K], the experts of each token.
        shares: [N, K], the weight of each in the sum; a token's shares sum to 1.

    Returns:
        [N, H].
    """
    return torch.onnx.ops.symbolic(
        f"{PLACEHOLDER_DOMAIN}::{EXPERTS}",
        (hidden, chosen, shares, module.gate_up_proj, module.down_proj),
        {},
        dtype=hidden.dtype,
        shape=hidden.shape,
        version=1,
    )


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, experts_placeholder)
