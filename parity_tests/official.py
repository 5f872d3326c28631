"""The published sizes of Qwen3-VL as configurations, and random checkpoints of them at any depth.

Real weights are gigabytes and not always at hand; shapes are what an export can get wrong before a weight is read.
Random weights are scaled so that activations stay around one and attention and routing are far from uniform: with
transformers' default initialisation every key looks alike and a wrong rotation goes unnoticed. A sparse checkpoint is
all zeros and takes no room on disk, for builds whose size and memory are what is measured.

Source: the `config.json` of the Qwen/Qwen3-VL-*-Instruct repositories.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

TOWER_24 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
TOWER_27 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}
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
    "30b-a3b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32}
        | {"num_key_value_heads": 4, "moe_intermediate_size": 768, **EXPERTS},
        TOWER_27,
        False,
    ),
    "235b-a22b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94, "num_attention_heads": 64}
        | {"num_key_value_heads": 4, "moe_intermediate_size": 1536, **EXPERTS},
        TOWER_27,
        False,
    ),
}
QUERY_KEY_GAIN = 2.0  # how much sharper than unit scale attention is
ROUTER_GAIN = 2.0  # how much sharper than unit scale routing is
SHARD_BYTES = 5_000_000_000  # of the published files, about
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}  # their names in safetensors headers

Config = Qwen3VLConfig | Qwen3VLMoeConfig


def config(size: str, layers: int | None = None, depth: int | None = None, vocab_size: int = 151936) -> Config:
    """The configuration of a published size.

    Args:
        size: key of `SIZES`.
        layers: text layers, if not all.
        depth: vision layers, if not all; the DeepStack taps then follow the first three layers.
        vocab_size: smaller for checkpoints whose text nobody reads.
    """
    text, vision, tied = SIZES[size]
    text = {"num_key_value_heads": 8} | text
    text |= {
        "vocab_size": vocab_size,
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
    of = Qwen3VLMoeConfig if "num_experts" in text else Qwen3VLConfig
    return of(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens)


def published_shapes(of: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, under its published name and in its published layout."""
    model = Qwen3VLMoeForConditionalGeneration if isinstance(of, Qwen3VLMoeConfig) else Qwen3VLForConditionalGeneration
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in model(of).state_dict().items()}
    if of.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return {name: (s[0], s[2], s[1]) if ".mlp.experts." in name else s for name, s in shapes.items()}


def random_tensors(of: Config, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint, float32, one at a time, under its published name."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in published_shapes(of).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            yield name, 1 + 0.1 * noise
        elif name.endswith("bias"):
            yield name, 0.05 * noise
        elif "embed" in name and "patch" not in name:
            yield name, 0.5 * noise
        elif ".mlp.experts." in name:
            yield name, noise / math.sqrt(shape[1])
        else:
            tensor = noise / math.sqrt(math.prod(shape[1:]))
            if name.endswith("attn.qkv.weight"):
                tensor[: 2 * shape[1]] *= QUERY_KEY_GAIN
            yield name, tensor * ROUTER_GAIN if name.endswith("mlp.gate.weight") else tensor


def write_checkpoint(directory: Path, of: Config, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random checkpoint: config.json and one safetensors file. It has no tokenizer and no processor settings."""
    _write_config(directory, of)
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(of, seed)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_sparse_checkpoint(
    directory: Path, of: Config, settings: Path | None = None, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A checkpoint of zeros in shards with an index, as large as the published one; holes cost no disk.

    Args:
        settings: directory whose tokenizer and processor settings are copied in.
    """
    if settings is not None:
        kept = (path for path in settings.iterdir() if path.suffix in (".json", ".jinja"))
        directory.mkdir(parents=True, exist_ok=True)
        for path in kept:
            shutil.copyfile(path, directory / path.name)
    _write_config(directory, of)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in published_shapes(of).items():
        size += math.prod(shape) * dtype.itemsize
        if size > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = math.prod(shape) * dtype.itemsize
        shards[-1][name] = shape
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_holes(directory / file, shapes, dtype)
        weight_map |= dict.fromkeys(shapes, file)
    total = sum(math.prod(shape) for shapes in shards for shape in shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _write_config(directory: Path, of: Config) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(of.to_dict(), indent=1, default=str))


def _write_holes(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """A safetensors file of zeros: its header, then nothing up to its full length."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
