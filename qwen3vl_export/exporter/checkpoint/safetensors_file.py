"""Tensors in safetensors files: where each one is stored, and some rows of it read into memory.

Files are read, not mapped: a mapping costs a page fault every few pages, and the pages it has touched count as the
process's memory. Source of the format: huggingface/safetensors, `README.md`, "Format". Knows nothing about checkpoints.
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

from ...errors import CheckpointError, first_line

WEIGHT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = WEIGHT_DTYPES | {  # of what else a file may hold
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DOWNLOAD_AGAIN = "Download it again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: its shape and dtype there, and the offset of its first byte."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, rows: slice, into: Tensor) -> Tensor:
        """Read rows of the first axis into a contiguous tensor of their shape and dtype; returns it.

        Raises:
            CheckpointError: the file ends before the last row.
        """
        offset = self.offset + rows.start * prod(self.shape[1:]) * self.dtype.itemsize
        buffer = into.reshape(-1).view(torch.uint8).numpy().data
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            while buffer:
                count = os.preadv(descriptor, [buffer], offset)
                if not count:
                    raise CheckpointError(f"{self.file}: shorter than when it was opened", DOWNLOAD_AGAIN)
                buffer, offset = buffer[count:], offset + count
        finally:
            os.close(descriptor)
        return into


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, from its header.

    Raises:
        CheckpointError: not a complete safetensors file, or a tensor has a dtype that PyTorch lacks.
    """
    try:
        with safe_open(file, framework="pt"):
            pass  # checks the header against itself and against the file's length
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file ({first_line(error)})", DOWNLOAD_AGAIN
        ) from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor {name} has dtype {entry['dtype']}, weights have {', '.join(WEIGHT_DTYPES)}",
                "Use an unquantized Qwen3-VL checkpoint",
            )
    return {
        name: StoredTensor(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
        for name, entry in header.items()
    }
