"""A small mixture-of-experts checkpoint that has something to say: the trained tiny checkpoint, its MLPs made experts.

Each expert holds a random part of a trained MLP's neurons, so that what a token gets depends on where it is routed
while the model keeps attending and answering with conviction: random weights all through would hide mistakes. One layer
stays dense; the output head is untied, as published checkpoints have it. Tokenizer, vision tower and settings are the
tiny checkpoint's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

TINY = Path(__file__).resolve().parents[1] / "recipes" / "checkpoints" / "tiny"
WEIGHTS = "model.safetensors"
EXPERTS, CHOSEN, INNER = 8, 2, 256
DENSE_LAYER = 1
ROUTER_GAIN = 2.0  # how far from uniform routing is

Layout = Literal["published", "modules"]


def write_moe_checkpoint(directory: Path, layout: Layout = "published", seed: int = 0) -> Path:
    """Write the checkpoint.

    Args:
        layout: published: experts stacked as in the Hub's files, [E, H, 2 * I] and [E, I, H]. modules: as
            transformers 5 holds and saves them, [E, 2 * I, H] and [E, H, I].
    """
    shutil.copytree(TINY, directory, dirs_exist_ok=True)
    config = _config(json.loads((TINY / "config.json").read_text("utf-8")))
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    tensors = upcycled(load_file(TINY / WEIGHTS), config, seed)
    if layout == "published":
        tensors |= {name: t.transpose(1, 2).contiguous() for name, t in tensors.items() if ".experts." in name}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def upcycled(dense: dict[str, torch.Tensor], config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """The dense checkpoint's tensors with experts in place of MLPs, in transformers' layout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(dense)
    text = config["text_config"]
    hidden, neurons = text["hidden_size"], text["intermediate_size"]
    for layer in set(range(text["num_hidden_layers"])) - set(text["mlp_only_layers"]):
        mlp = f"model.language_model.layers.{layer}.mlp"
        gate, up, down = (tensors.pop(f"{mlp}.{name}_proj.weight") for name in ("gate", "up", "down"))
        parts = [torch.randperm(neurons, generator=generator)[:INNER] for _ in range(EXPERTS)]
        tensors[f"{mlp}.experts.gate_up_proj"] = torch.stack([torch.cat([gate[p], up[p]]) for p in parts])
        tensors[f"{mlp}.experts.down_proj"] = torch.stack([down[:, p] * (neurons / INNER) for p in parts])
        router = torch.randn(EXPERTS, hidden, generator=generator) * ROUTER_GAIN / hidden**0.5
        tensors[f"{mlp}.gate.weight"] = router.to(gate.dtype)
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    return tensors


def _config(config: dict[str, Any]) -> dict[str, Any]:
    config["architectures"] = ["Qwen3VLMoeForConditionalGeneration"]
    config["model_type"] = "qwen3_vl_moe"
    config["tie_word_embeddings"] = False
    config["vision_config"]["model_type"] = "qwen3_vl_moe_vision"
    config["text_config"] |= {
        "model_type": "qwen3_vl_moe_text",
        "tie_word_embeddings": False,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INNER,
        "mlp_only_layers": [DENSE_LAYER],
        "decoder_sparse_step": 1,
    }
    return config
