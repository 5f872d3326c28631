"""What changes the weights when transformers loads a model and is not exported: other files, and quantization that no
format reads.

Such a checkpoint is refused by name, since exporting its files as they are would give another model. Knows files and
config.json; nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .formats import find_settings
from .formats.settings import UNQUANTIZED

NAMED_WEIGHTS = "transformers_weights"


def refuse_other_weights(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says that the weights are quantized by another method than those of `FORMATS`, or in
    a file of another name.

    Args:
        path: of the config.json.
        config: its values.

    Raises:
        CheckpointError: it does.
    """
    if (file := config.get(NAMED_WEIGHTS)) is not None:
        raise CheckpointError(
            f"{path}: {NAMED_WEIGHTS} says that transformers loads {file!r} in place of model.safetensors",
            f"Rename that file to model.safetensors and remove {NAMED_WEIGHTS}",
        )
    find_settings(path, config)
    for key in ("compression_config", "vision_config.quantization_config", "vision_config.compression_config"):
        section, _, name = key.rpartition(".")
        values = config.get(section) if section else config
        if isinstance(values, Mapping) and values.get(name) is not None:
            raise CheckpointError(f"{path}: {key} says that the weights are quantized, which is not read", UNQUANTIZED)
