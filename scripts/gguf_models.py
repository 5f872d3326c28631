"""The checkpoint of `bench.py` as llama.cpp reads it: a language model in Q4_0 and a projector in float16.

Names and settings are those that llama.cpp looks for in the architectures `qwen3vl` and `clip` (its `llama-arch.cpp`,
`clip-impl.h` and `clip.cpp`). Knows the format; how the files are run is in `peer_sides.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from decoder_models import CHECKPOINT, rope_of

TEXT, VISION = "model.language_model.", "model.visual."
MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
    "norm1": "ln1",
    "norm2": "ln2",
}
MERGER = {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"}
DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # gguf.TokenType


def text_name(name: str) -> str:
    """`model.language_model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem = name.removeprefix(TEXT).removesuffix(".weight")
    if stem in ENDS:
        return f"{ENDS[stem]}.weight"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{LAYER[part]}.weight"


def vision_tensors(name: str, tensor: Any, taps: list[int]) -> Iterator[tuple[str, Any]]:
    """The tensors that one of the tower becomes: `blocks.3.norm1.bias` -> `v.blk.3.ln1.bias`."""
    stem, ending = name.removeprefix(VISION).rsplit(".", 1)
    if stem == "patch_embed.proj" and ending == "weight":  # a convolution for each of two frames
        yield "v.patch_embd.weight", tensor[:, :, 0]
        yield "v.patch_embd.weight.1", tensor[:, :, 1]
    elif stem == "patch_embed.proj":
        yield "v.patch_embd.bias", tensor
    elif stem == "pos_embed":
        yield "v.position_embd.weight", tensor
    elif block := re.fullmatch(r"blocks\.(\d+)\.(.*)", stem):
        yield f"v.blk.{block[1]}.{BLOCK[block[2]]}.{ending}", tensor
    elif merger := re.fullmatch(r"deepstack_merger_list\.(\d+)\.(.*)", stem):
        yield f"v.deepstack.{taps[int(merger[1])]}.{DEEPSTACK[merger[2]]}.{ending}", tensor
    else:
        yield f"{MERGER[stem.removeprefix('merger.')]}.{ending}", tensor


def write_tokenizer(writer: Any, file: Path, size: int) -> None:
    """The tokens of a `tokenizer.json`, and unused ones up to the size of the vocabulary."""
    tokenizer = json.loads(file.read_text("utf-8"))
    tokens = {number: (token, NORMAL) for token, number in tokenizer["model"]["vocab"].items()}
    tokens |= {token["id"]: (token["content"], CONTROL) for token in tokenizer["added_tokens"]}
    listed = [tokens.get(number, (f"[unused {number}]", UNUSED)) for number in range(size)]
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])


def write_model(writer: Any, checkpoint: Any, config: dict[str, Any], tokenizer: Path) -> None:
    """The language model in float32."""
    text, vision = config["text_config"], config["vision_config"]
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    base, sections = rope_of(text)
    writer.add_rope_freq_base(base)
    writer.add_rope_dimension_sections([*sections, 0])
    writer.add_num_deepstack_layers(len(vision["deepstack_visual_indexes"]))
    writer.add_vocab_size(text["vocab_size"])
    write_tokenizer(writer, tokenizer, text["vocab_size"])
    for name in checkpoint.tensors:
        if not name.startswith(VISION):
            writer.add_tensor(text_name(name), checkpoint.read(name).float().numpy())


def write_projector(writer: Any, checkpoint: Any, config: dict[str, Any], processor: dict[str, Any]) -> None:
    """The tower and its mergers; matrices in float16."""
    vision = config["vision_config"]
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("qwen3vl_merger")
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_image_size(round(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_is_deepstack_layers([n in vision["deepstack_visual_indexes"] for n in range(vision["depth"])])
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    for name in checkpoint.tensors:
        if name.startswith(VISION):
            taps = vision["deepstack_visual_indexes"]
            for target, tensor in vision_tensors(name, checkpoint.read(name).float().numpy(), taps):
                single = tensor.ndim == 1 or "position" in target
                writer.add_tensor(target, np.ascontiguousarray(tensor, np.float32 if single else np.float16))


def make_llama_cpp(work: Path) -> None:
    """`work/llama.cpp`: the model, by llama.cpp's quantizer, and the projector."""
    import ctypes

    import gguf
    import llama_cpp

    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    source, folder = work / CHECKPOINT, work / "llama.cpp"
    folder.mkdir()
    checkpoint, config = open_checkpoint(str(source)), json.loads((source / "config.json").read_text())
    whole, processor = folder / "float32.gguf", json.loads((source / "preprocessor_config.json").read_text())
    model, projector = gguf.GGUFWriter(whole, "qwen3vl"), gguf.GGUFWriter(folder / PROJECTOR, "clip")
    write_model(model, checkpoint, config, source / "tokenizer.json")
    write_projector(projector, checkpoint, config, processor)
    for writer in (model, projector):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(folder / MODEL).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    whole.unlink()
