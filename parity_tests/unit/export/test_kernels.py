"""The graphs of `--precision cuda`: every node that runs once per layer has a kernel in onnxruntime's CUDA provider.

By the record of what onnxruntime-gpu's own register took (`fixtures/kernels.py`). Numbers are those of the CPU: no GPU
was there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen3vl_export.recipe import load_recipe

from ...fixtures.kernels import CUDA, ON_THE_CPU, read_record, without_kernel


def test_cuda_is_fp16_but_for_experts_and_packaging() -> None:
    """So that the graphs of `tiny-fp16`, which are tested everywhere, are those of `tiny-cuda`."""
    cuda, half = load_recipe("tiny-cuda"), load_recipe("tiny-fp16")
    assert (cuda.dtype, cuda.quantization, cuda.target) == (half.dtype, half.quantization, half.target)
    assert cuda.experts == "operator" and cuda.packaging.provider == "cuda"


def test_every_node_of_a_layer_is_on_the_gpu(built: Callable[[str], Path]) -> None:
    paths = [*(built("tiny-fp16") / "onnx").glob("*.onnx"), *(built("tiny-precisions") / "onnx").glob("*_q4f16.onnx")]
    assert len(paths) >= 6
    for path in paths:
        assert without_kernel(path, CUDA).items() <= ON_THE_CPU.items(), path.name


def test_what_cuda_has_no_kernel_for_is_noticed(tiny_artifact: Path) -> None:
    """In float32, CUDA has no GroupQueryAttention: the attention of every layer would be on the CPU."""
    record = read_record(CUDA)
    attention = "com.microsoft.GroupQueryAttention-1({0}, {0}, {0}, {0}, {0}, int32, int32) -> {0}, {0}, {0}"
    assert record[attention.format("float16")] and not record[attention.format("float")]
    decoder = without_kernel(tiny_artifact / "onnx" / "decoder_model_merged.onnx", CUDA)
    assert decoder[attention.format("float")] == 4
