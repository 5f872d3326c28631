"""Which files of a directory hold a checkpoint's weights. Knows file names; nothing about tensors' meaning."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import CheckpointError
from .safetensors_file import StoredTensor, stored_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_files(root: Path) -> list[Path]:
    """The safetensors files that an index names, else the single one.

    Raises:
        CheckpointError: one is missing, or the index cannot be read.
    """
    index = root / INDEX
    names = [SINGLE]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a safetensors index ({error})", "Download it again") from error
    for name in names:
        if not (root / name).is_file():
            raise CheckpointError(f"{root}: {name} is missing", "Download the checkpoint again")
    return [root / name for name in names]


def stored_weights(root: Path) -> dict[str, StoredTensor]:
    """Every tensor of every file, from the headers alone, by its name in the files.

    Raises:
        CheckpointError: a file is missing, or is not a safetensors file.
    """
    return {name: stored for file in weight_files(root) for name, stored in stored_tensors(file).items()}
