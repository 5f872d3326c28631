"""The tiny model: every part of Qwen3-VL's architecture, small. And how its weights start.

Knows sizes and initial weights. Does not know how it is trained.
"""

import math

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100_000.0,
        "mrope_section": [6, 5, 5],  # half of head_dim, shared out to time, rows, columns
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 4,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_heads": 3,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 256,  # a 16x16 table, interpolated to each picture's grid
    "deepstack_visual_indexes": [0, 1, 2],
}
RESIDUAL_OUTPUTS = ("o_proj", "down_proj", "attn.proj", "linear_fc2")


def build_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    ids = tokenizer.token_to_id
    vocabulary = math.ceil(tokenizer.get_vocab_size() / 32) * 32  # 538 -> 544
    special = {"bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"), "pad_token_id": None}
    return Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": vocabulary, **special},
        vision_config={**VISION, "out_hidden_size": TEXT["hidden_size"]},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    stop, end = config.text_config.eos_token_id, config.text_config.bos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=[stop, end], pad_token_id=end, do_sample=False
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            initialize(name, parameter.data)
    return model


def initialize(name: str, weight: torch.Tensor) -> None:
    if "embed_tokens" in name:
        weight.normal_(0, 0.1)
    elif "pos_embed" in name:
        weight.copy_(sinusoids(weight.shape[0], weight.shape[1]))
    elif "patch_embed" in name:
        weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
    else:
        scale = 1 / math.sqrt(weight.shape[1])
        weight.normal_(0, scale * 0.3 if any(part in name for part in RESIDUAL_OUTPUTS) else scale)


def sinusoids(count: int, width: int) -> torch.Tensor:
    """-> (count, width): slow sines and cosines of row and column, so that places are readable from the first step."""
    side, bands = math.isqrt(count), width // 4
    angle = 2 * math.pi * torch.linspace(0, 1, side)[:, None] * torch.logspace(math.log10(0.25), math.log10(4), bands)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).reshape(count, width)
