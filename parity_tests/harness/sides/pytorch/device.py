"""The device that PyTorch's side computes on, and whether a model fits there as a whole.

Knows PyTorch's devices and sizes; nothing about models.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from qwen3vl_export.console import format_size
from qwen3vl_export.errors import ParityError
from qwen3vl_export.exporter.checkpoint import open_checkpoint

CPU = torch.device("cpu")
FLOAT32 = 4
COMPUTING = 1 << 32  # bytes of a GPU beside the weights: attention at its limit, `attention.EAGER_TOKENS`, and logits


def open_device(name: str) -> torch.device:
    """The device of this name; on a GPU, float32 is float32 from now on: TF32 is off.

    Raises:
        ParityError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in (CPU.type, "cuda"):
        raise ParityError(f"--device {name}: no device that PyTorch's side computes on", "Choose cpu, cuda or cuda:1")
    if device.type == CPU.type:
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        what = f"--device {name}: PyTorch {torch.__version__} sees {count} GPUs"
        raise ParityError(what, "Install a PyTorch with CUDA, or leave --device out" if not count else "Choose another")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return device


def exceeds_device(device: torch.device, checkpoint: Path) -> bool:
    """Whether a checkpoint's model, in float32, is too large for a GPU as a whole; it is then streamed through it.

    Raises:
        ParityError: even its largest tensor, an output head or a stack of experts, does not fit.
    """
    if device.type == CPU.type:
        return False
    sizes = [FLOAT32 * prod(tensor.shape) for tensor in open_checkpoint(str(checkpoint)).tensors.values()]
    free, _ = torch.cuda.mem_get_info(device)
    if COMPUTING + max(sizes) > free:
        what = f"{checkpoint}: takes {format_size(COMPUTING + max(sizes))} of the GPU's memory"
        raise ParityError(f"{what}, {format_size(free)} are free", "Close other programs there, or leave --device out")
    return COMPUTING + sum(sizes) > free
