"""What the peers of `bench.py` read, made of the random checkpoint by each one's own tools.

    genai           the language model as a Qwen3 checkpoint, through onnxruntime-genai's own int4 builder
    llama.cpp       the whole model as GGUF, through llama.cpp's own Q4_0 quantizer (`gguf_models.py`)
    openvino        our portable artifact
    openvino-genai  the whole model, through optimum-intel's own int4 export

Qwen3 is the language model of Qwen3-VL without DeepStack and with one position axis: same products, norms and cache.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from decoder_models import CHECKPOINT, TINY, make_ours, rope_of
from gguf_models import make_llama_cpp

TEXT_PREFIX = "model.language_model."
OPENVINO = "int4-128"  # the precision of its artifact
ERROR = re.compile(r"[\w.]*(Error|Exception)\b")  # how a traceback's last line begins


def run_tool(*words: Any) -> None:
    """Run another exporter.

    Raises:
        RuntimeError: it failed; the message is the last error it told.
    """
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if ERROR.match(line)]
        raise RuntimeError(told[-1] if told else f"exit code {done.returncode}")


def text_tensors(work: Path) -> Iterator[tuple[str, Any]]:
    """The language model's tensors by their Qwen3 names, bfloat16, one at a time."""
    from qwen3vl_export.exporter.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(str(work / CHECKPOINT))
    for name in checkpoint.tensors:
        if name.startswith(TEXT_PREFIX):
            yield "model." + name.removeprefix(TEXT_PREFIX), checkpoint.read(name)
        elif name == "lm_head.weight":
            yield name, checkpoint.read(name)


def make_genai(work: Path) -> None:
    """`work/genai`: what `onnxruntime_genai.models.builder -p int4 -e cpu` makes of a Qwen3 checkpoint."""
    from safetensors.torch import save_file

    source = work / "qwen3"
    source.mkdir()
    save_file(dict(text_tensors(work)), source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((work / CHECKPOINT / "config.json").read_text())
    text = {**config["text_config"], "tie_word_embeddings": config["tie_word_embeddings"]}
    rope = {"rope_type": "default", "rope_theta": rope_of(text)[0]}
    kind = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
    eos = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0, "dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps({**text, **kind, **eos, "rope_parameters": rope}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, source / name)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    run_tool(*builder, "-i", source, "-o", work / "genai", "-c", work / "genai-cache")
    shutil.rmtree(source)


def make_openvino(work: Path) -> None:
    """The portable artifact, and its decoder with one row of logits as the default: to OpenVINO an input with a default
    is a constant."""
    import onnx
    from onnx import numpy_helper

    make_ours(work, "openvino", OPENVINO, "portable")
    folder = work / "openvino" / "onnx"
    model = onnx.load(folder / "decoder_model.onnx", load_external_data=False)
    keep = next(tensor for tensor in model.graph.initializer if tensor.name == "num_logits_to_keep")
    keep.CopyFrom(numpy_helper.from_array(np.array(1, np.int64), keep.name))
    onnx.save(model, folder / "one_row.onnx")


def make_openvino_genai(work: Path) -> None:
    """`work/openvino-genai`: what `optimum-cli export openvino` makes of the checkpoint."""
    tool = Path(sys.executable).with_name("optimum-cli")
    kind = ["--task", "image-text-to-text", "--weight-format", "int4", "--group-size", "128"]
    run_tool(tool, "export", "openvino", "--model", work / CHECKPOINT, *kind, work / "openvino-genai")


MAKERS: dict[str, Callable[[Path], None]] = {
    "genai": make_genai,
    "llama.cpp": make_llama_cpp,
    "openvino": make_openvino,
    "openvino-genai": make_openvino_genai,
}
