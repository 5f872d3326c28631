"""The models of `bench.py`: one random checkpoint, and what each side makes of the same tensors.

    ours          an artifact built by the pipeline from a recipe
    transformers  the checkpoint itself
    genai         the language model as a Qwen3 checkpoint, through onnxruntime-genai's own int4 builder
    llama.cpp     the language model as GGUF, through llama.cpp's own Q4_0 quantizer

Qwen3 is the language model of Qwen3-VL without DeepStack and with one position axis: same products, norms and cache.
Knows file formats; measures nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "recipes" / "checkpoints" / "tiny"
SETTINGS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
PREPROCESSOR = "preprocessor_config.json"
PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}  # of the published checkpoints, not of the tiny one
TABLE = {"method": "int4", "block_size": 32}
PRECISIONS: dict[str, dict[str, Any]] = {  # what a recipe says under `quantization`
    "float32": {},
    **{
        name: {"embeddings": TABLE, "decoder_model_merged": {**TABLE, "block_size": block, "accuracy_level": 4}}
        for name, block in (("int4", 32), ("int4-128", 128))
    },
}
PORTABLE = {"decoder_model_merged": {**TABLE, "block_size": 128}}
TEXT_PREFIX = "model.language_model."


def write_random(work: Path, size: str, layers: int | None, depth: int | None, vocab_size: int) -> None:
    """A random checkpoint of a published shape with the tiny model's tokenizer files, which no figure depends on."""
    from parity_tests.fixtures.official import config, write_checkpoint

    if size == "tiny":
        shutil.copytree(TINY, work / "checkpoint")
    else:
        write_checkpoint(work / "checkpoint", config(size, layers, depth, vocab_size))
        for name in SETTINGS:
            shutil.copyfile(TINY / name, work / "checkpoint" / name)
    processor = json.loads((TINY / PREPROCESSOR).read_text())
    (work / "checkpoint" / PREPROCESSOR).write_text(json.dumps({**processor, "size": PIXELS}))


def make_ours(work: Path, name: str, quantization: dict[str, Any], target: str = "ort") -> None:
    """`work/<name>`: the artifact of a recipe that says so."""
    from qwen3vl_export.exporter.pipeline import build
    from qwen3vl_export.recipe import load_recipe

    recipe = {
        "name": name,
        "checkpoint": {"source": str(work / "checkpoint")},
        "dtype": "float32",
        "target": target,
        "quantization": quantization,
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    build(load_recipe(path), out=work / name, log=lambda line: None)


def make_openvino(work: Path) -> None:
    """The portable artifact, and its decoder with one row of logits as the default: to OpenVINO an input with a default
    is a constant."""
    import onnx
    from onnx import numpy_helper

    make_ours(work, "int4-portable", PORTABLE, "portable")
    folder = work / "int4-portable" / "onnx"
    model = onnx.load(folder / "decoder_model.onnx", load_external_data=False)
    keep = next(tensor for tensor in model.graph.initializer if tensor.name == "num_logits_to_keep")
    keep.CopyFrom(numpy_helper.from_array(np.array(1, np.int64), keep.name))
    onnx.save(model, folder / "one_row.onnx")


def text_tensors(work: Path) -> Iterator[tuple[str, Any]]:
    """The language model's tensors by their Qwen3 names, bfloat16, one at a time."""
    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(str(work / "checkpoint"))
    for name in checkpoint.tensors:
        if name.startswith(TEXT_PREFIX):
            yield "model." + name.removeprefix(TEXT_PREFIX), checkpoint.read(name)
        elif name == "lm_head.weight":
            yield name, checkpoint.read(name)


def text_config(work: Path) -> dict[str, Any]:
    """The language model's configuration."""
    config = json.loads((work / "checkpoint" / "config.json").read_text())
    return {**config["text_config"], "tie_word_embeddings": config["tie_word_embeddings"]}


def make_genai(work: Path) -> None:
    """`work/genai`: what `onnxruntime_genai.models.builder -p int4 -e cpu` makes of a Qwen3 checkpoint."""
    from safetensors.torch import save_file

    source = work / "qwen3"
    source.mkdir()
    save_file(dict(text_tensors(work)), source / "model.safetensors", metadata={"format": "pt"})
    text = text_config(work)
    rope = {"rope_type": "default", "rope_theta": text["rope_parameters"]["rope_theta"]}
    kind = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
    eos = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0, "dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps({**text, **kind, **eos, "rope_parameters": rope}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, source / name)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    command = [*builder, "-i", source, "-o", work / "genai", "-c", work / "genai-cache"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


GGUF_NAMES = {
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
GGUF_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if stem in GGUF_ENDS:
        return f"{GGUF_ENDS[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def make_llama_cpp(work: Path) -> None:
    """`work/llama.cpp/model.gguf`: Q4_0, by llama.cpp's quantizer."""
    import ctypes

    import gguf
    import llama_cpp

    folder = work / "llama.cpp"
    folder.mkdir()
    whole, text = folder / "float32.gguf", text_config(work)
    writer = gguf.GGUFWriter(whole, "qwen3")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in text_tensors(work):
        writer.add_tensor(gguf_name(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(
        str(whole).encode(), str(folder / "model.gguf").encode(), ctypes.byref(options)
    )
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    whole.unlink()


def make_nothing(work: Path) -> None:
    """The side reads the checkpoint itself."""


MAKERS: dict[str, Callable[[Path], None]] = {
    **{name: partial(make_ours, name=name, quantization=said) for name, said in PRECISIONS.items()},
    "openvino": make_openvino,
    "transformers": make_nothing,
    "genai": make_genai,
    "llama.cpp": make_llama_cpp,
}
