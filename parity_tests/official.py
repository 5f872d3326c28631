"""The published sizes of Qwen3-VL as configurations, and random checkpoints of them at any depth.

Real weights are gigabytes and not always at hand; shapes are what an export can get wrong before a weight is read.
Random weights are scaled so that activations stay around one and attention is far from uniform: with transformers'
default initialisation every key looks alike and a wrong rotation goes unnoticed.

Source: the `config.json` of the Qwen/Qwen3-VL-*-Instruct repositories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

TOWER_24 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
TOWER_27 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {  # text, vision, tied embeddings
    "2b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        TOWER_24,
        True,
    ),
    "4b": (
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        TOWER_24,
        True,
    ),
    "8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        TOWER_27,
        False,
    ),
    "32b": (
        {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
        TOWER_27,
        False,
    ),
}
QUERY_KEY_GAIN = 2.0  # how much sharper than unit scale attention is


def config(size: str, layers: int | None = None, depth: int | None = None, vocab_size: int = 151936) -> Qwen3VLConfig:
    """The configuration of a published size.

    Args:
        size: key of `SIZES`.
        layers: text layers, if not all.
        depth: vision layers, if not all; the DeepStack taps then follow the first three layers.
        vocab_size: smaller for checkpoints whose text nobody reads.
    """
    text, vision, tied = SIZES[size]
    text = text | {
        "vocab_size": vocab_size,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
    }
    vision = vision | {"num_heads": 16, "out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304}
    if layers is not None:
        text["num_hidden_layers"] = layers
    if depth is not None:
        vision |= {"depth": depth, "deepstack_visual_indexes": list(range(min(3, depth)))}
    ids = {"vision_start": -4, "vision_end": -3, "image": -2, "video": -1}
    tokens = {f"{name}_token_id": vocab_size + offset for name, offset in ids.items()}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens)


def random_tensors(of: Qwen3VLConfig, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint, float32, one at a time, under its published name."""
    with torch.device("meta"):
        shapes = Qwen3VLForConditionalGeneration(of).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name, meta in shapes.items():
        if name == "lm_head.weight" and of.tie_word_embeddings:
            continue
        noise = torch.randn(meta.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            yield name, 1 + 0.1 * noise
        elif name.endswith("bias"):
            yield name, 0.05 * noise
        elif "embed" in name and "patch" not in name:
            yield name, 0.5 * noise
        else:
            tensor = noise / math.sqrt(meta[0].numel())
            if name.endswith("attn.qkv.weight"):
                tensor[: 2 * meta.shape[1]] *= QUERY_KEY_GAIN
            yield name, tensor


def write_checkpoint(directory: Path, of: Qwen3VLConfig, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random checkpoint: config.json and one safetensors file. It has no tokenizer and no processor settings."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(of, seed)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(of.to_dict(), indent=1, default=str))
    return directory
