"""What changes the weights when transformers loads a model and is not exported: adapters, quantization, other files.

Such a checkpoint is refused by name, since exporting its files as they are would give another model. Knows files and
config.json; nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

ADAPTER = "adapter_config.json"
NAMED_WEIGHTS = "transformers_weights"
QUANTIZATIONS = ("quantization_config", "compression_config")


def refuse_adapter(root: Path) -> None:
    """Refuse a directory with a PEFT adapter, which transformers' `from_pretrained` loads on top of the base weights.

    Raises:
        CheckpointError: there is one.
    """
    if (root / ADAPTER).exists():
        raise CheckpointError(
            f"{root}: {ADAPTER} makes this a model with an adapter, which transformers would add to the weights",
            "Merge it: load it with peft, model.merge_and_unload().save_pretrained(DIR); or move the adapter elsewhere",
        )


def refuse_other_weights(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says that the weights are quantized, or in a file of another name.

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
    sections = {"": config, "text_config.": config.get("text_config"), "vision_config.": config.get("vision_config")}
    for section, values in sections.items():
        for key in QUANTIZATIONS:
            settings = values.get(key) if isinstance(values, Mapping) else None
            if settings is None:
                continue
            method = settings.get("quant_method") if isinstance(settings, Mapping) else None
            raise CheckpointError(
                f"{path}: {section}{key} says that the weights are quantized ({method or 'method not named'}), which "
                "is not read",
                "Use the checkpoint it was made from, and quantize with the recipe",
            )
