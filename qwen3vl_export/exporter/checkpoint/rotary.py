"""The rotary settings of a configuration, as transformers' own modules read them. Knows nothing about graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding, Qwen3VLVisionRotaryEmbedding
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeTextRotaryEmbedding,
    Qwen3VLMoeVisionRotaryEmbedding,
)

TEXT = {"qwen3_vl_text": Qwen3VLTextRotaryEmbedding, "qwen3_vl_moe_text": Qwen3VLMoeTextRotaryEmbedding}
VISION = {"qwen3_vl_vision": Qwen3VLVisionRotaryEmbedding, "qwen3_vl_moe_vision": Qwen3VLMoeVisionRotaryEmbedding}
DYNAMIC, LONGROPE = "dynamic", "longrope"  # the types whose frequencies depend on the length of the sequence
COMPUTED_ANYWAY = {"mrope_interleaved": True, "partial_rotary_factor": 1.0}  # values of unread keys that change nothing


def text_rotary(config: Any) -> Any:
    """transformers' rotary embedding of the decoder, for a text configuration; its frequencies are float32.

    Raises:
        Exception: whatever transformers raises for settings that it cannot compute.
    """
    return TEXT[config.model_type](config)


def vision_rotary(config: Any) -> Any:
    """transformers' axial rotary embedding of the tower, for a vision configuration.

    Raises:
        Exception: whatever transformers raises for settings that it cannot compute.
    """
    return VISION[config.model_type](config)


def context_length(config: Any) -> int:
    """Tokens that a text configuration's context holds: `max_position_embeddings`, which is the length before scaling
    where the type is dynamic."""
    rope, length = config.rope_parameters, int(config.max_position_embeddings)
    return int(rope["factor"] * length) if rope["rope_type"] == DYNAMIC else length


def scaled_length(config: Any) -> int:
    """Tokens that the context is scaled to: factor x original length; 0 where the settings state none."""
    rope = config.rope_parameters
    return int((rope.get("factor") or 0) * (rope.get("original_max_position_embeddings") or 0))


def unread_settings(config: Any) -> Iterator[tuple[str, Any]]:
    """The rotary settings of a text configuration that transformers never reads, unless they state what it does
    anyway: found by letting it compute with them."""
    settings = ReadSettings(config.rope_parameters)
    observed = copy.deepcopy(config)
    observed.rope_parameters = settings
    rotary = text_rotary(observed)
    settings.read |= {"rope_type", "type"}
    rotary(torch.zeros(1), torch.zeros(3, 1, 1, dtype=torch.int64))
    for name, value in config.rope_parameters.items():
        if name not in settings.read and value is not None and COMPUTED_ANYWAY.get(name) != value:
            yield name, value


class ReadSettings(dict[str, Any]):
    """Settings that record which keys were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)
