"""Tensors in safetensors files: where each one lies, and some rows of it read into memory.

Files are read, not mapped: a mapping costs a fault for every few pages, and what it has touched counts as the process's
memory. Source of the format: huggingface/safetensors, `README.md`, "Format". Knows nothing about checkpoints.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
AGAIN = "Download it again"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its shape and dtype there, and the offset of its first byte."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, rows: slice, into: Tensor) -> Tensor:
        """Rows of the first axis, into the contiguous tensor of that shape and dtype; returns it.

        Raises:
            CheckpointError: the file ends before the last of them.
        """
        place = self.offset + rows.start * prod(self.shape[1:]) * self.dtype.itemsize
        room = into.reshape(-1).view(torch.uint8).numpy().data
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            while room:
                got = os.preadv(descriptor, [room], place)
                if not got:
                    raise CheckpointError(f"{self.file}: shorter than when it was opened", AGAIN)
                room, place = room[got:], place + got
        finally:
            os.close(descriptor)
        return into


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Every tensor of one file, from its header.

    Raises:
        CheckpointError: not a whole safetensors file, or it holds a dtype that weights do not have.
    """
    try:
        with safe_open(file, framework="pt"):
            pass  # checks the header against itself and against the file's length
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})", AGAIN) from error
    with file.open("rb") as shard:
        length = int.from_bytes(shard.read(8), "little")
        header = json.loads(shard.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor {name} has dtype {entry['dtype']}, weights have {', '.join(DTYPES)}",
                "Use an unmodified Qwen3-VL checkpoint",
            )
    return {
        name: Stored(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
        for name, entry in header.items()
    }
