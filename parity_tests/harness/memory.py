"""Whether both sides of a verification fit into memory: PyTorch as a whole, or else a module at a time.

Knows sizes; nothing about how either side computes.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.console import format_size
from qwen3vl_export.errors import ParityError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.tensors import TensorReader

MEMINFO = Path("/proc/meminfo")
RESERVE = 1 << 30  # bytes left to other programs where no budget is given
LIBRARIES = 1 << 30  # PyTorch and onnxruntime without weights, and the activations of an ordinary case
SESSION = 1.25  # of an artifact's weights: onnxruntime packs some of them while the stored ones are still in memory
LOADING = 2  # copies of a module's weights while it is loaded: as stored, and in float32
FLOAT32 = 4


def default_budget() -> int:
    """Bytes of memory that are free, less a reserve."""
    lines = MEMINFO.read_text("ascii").splitlines() if MEMINFO.is_file() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return max(int(value.split()[0]) * 1024 - RESERVE, 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def must_stream(artifact: Artifact, checkpoint: Path, budget: int) -> bool:
    """Whether PyTorch has to keep the checkpoint on disk to stay within a budget of bytes.

    Raises:
        ParityError: even then it takes more than the budget.
    """
    tensors = open_checkpoint(str(checkpoint)).tensors
    whole = FLOAT32 * sum(size(tensor) for tensor in tensors.values())
    sessions = round(SESSION * weights_of(artifact))
    if LIBRARIES + sessions + whole <= budget:
        return False
    needed = LIBRARIES + max(sessions, LOADING * FLOAT32 * max(map(size, tensors.values())))
    if needed > budget:
        what = f"{artifact.root}: verifying it takes {format_size(needed)} of memory, {format_size(budget)} are free"
        raise ParityError(what, "Close other programs, pass --memory if it may take more, or use a larger machine")
    return True


def weights_of(artifact: Artifact) -> int:
    """Bytes of the graphs that are open together: both embedding graphs and all encoders share one data file."""
    return sum(record.bytes for name, record in artifact.manifest.files.items() if name.startswith("onnx/"))


def size(tensor: TensorReader) -> int:
    return prod(tensor.shape)
