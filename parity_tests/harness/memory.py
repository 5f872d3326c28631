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
from qwen3vl_export.runtime.external import external_locations

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
RESERVE = 1 << 30  # bytes left to other programs where no budget is given
ACTIVATIONS = 1 << 28  # bytes, of an ordinary case on either side
SESSION = 1.25  # of an artifact's weights: onnxruntime packs some of them while the stored ones are still in memory
LOADING = 2  # copies of a module's weights while it is loaded: as stored, and in float32
FLOAT32 = 4


def must_stream(artifact: Artifact, checkpoint: Path, budget: int | None = None) -> bool:
    """Whether PyTorch has to keep the checkpoint on disk.

    Args:
        budget: bytes that this process may take; None is what is free, less a reserve.

    Raises:
        ParityError: even a streamed checkpoint takes more.
    """
    tensors = open_checkpoint(str(checkpoint)).tensors
    sessions = round(SESSION * weights_of(artifact))
    whole = ACTIVATIONS + sessions + FLOAT32 * sum(map(size, tensors.values()))
    streamed = ACTIVATIONS + max(sessions, LOADING * FLOAT32 * max(map(size, tensors.values())))
    free = free_memory() if budget is None else budget - resident_memory()
    if whole <= free - (RESERVE if budget is None else 0):
        return False
    if streamed > free:
        left = format_size(max(free, 0))
        what = f"{artifact.root}: verifying it takes {format_size(streamed)} of memory, {left} are left"
        raise ParityError(
            what, "Close other programs, pass a larger --memory if there is more, or use a larger machine"
        )
    return True


def free_memory() -> int:
    """Bytes that programs can still take; half of the machine's where the system does not say."""
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return read_kilobytes(MEMINFO, "MemAvailable") or half


def resident_memory() -> int:
    """Bytes that this process takes; none where the system does not say."""
    return read_kilobytes(STATUS, "VmRSS")


def read_kilobytes(path: Path, field: str) -> int:
    """A number of kilobytes of a file in /proc, in bytes; 0 without it."""
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values[field].split()[0]) * 1024 if field in values else 0


def weights_of(artifact: Artifact) -> int:
    """Bytes that the graphs of an artifact's precision read: each file once, whichever graphs share it."""
    return sum(file.stat().st_size for file in graph_files(artifact))


def graph_files(artifact: Artifact) -> set[Path]:
    """The graphs of an artifact's precision, and the files of their weights."""
    files = set()
    for path in map(artifact.graph_path, artifact.manifest.graphs):
        files |= {path, *(path.parent / location for location in external_locations(path.read_bytes()))}
    return files


def size(tensor: TensorReader) -> int:
    return prod(tensor.shape)
