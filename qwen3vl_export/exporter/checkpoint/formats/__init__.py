"""Quantized checkpoints: a format's stored tensors become readers of the matrices that transformers' modules have.

One module per format, by `quantization_config.quant_method`. Values are restored in float32 by the published
arithmetic, some rows at a time. Knows which format a checkpoint has; nothing about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..safetensors_file import StoredTensor
from ..tensors import StoredReader, TensorReader
from .auto_round import restore_auto_round
from .awq import restore_awq
from .bitsandbytes import restore_bitsandbytes
from .compressed_tensors import restore_compressed_tensors
from .fp8 import restore_fp8
from .gptq import restore_gptq
from .settings import QuantizationConfig

KEY = "quantization_config"
FORMATS: dict[str, Callable[[Mapping[str, StoredTensor], QuantizationConfig], dict[str, TensorReader]]] = {
    "fp8": restore_fp8,
    "compressed-tensors": restore_compressed_tensors,
    "gptq": restore_gptq,
    "awq": restore_awq,
    "bitsandbytes": restore_bitsandbytes,
    "auto-round": restore_auto_round,
}


def find_settings(file: Path, config: Mapping[str, Any]) -> QuantizationConfig | None:
    """The quantization settings of a configuration or of its text model, where transformers looks for them.

    Args:
        file: the `config.json`.
        config: its values.

    Raises:
        CheckpointError: no format has their `quant_method`.
    """
    for section in ("", "text_config"):
        inside = (
            QuantizationConfig(file, config, "").inside(section) if section else QuantizationConfig(file, config, "")
        )
        if inside.get(KEY) is not None:
            settings = inside.inside(KEY)
            if settings.method not in list(FORMATS):  # by equality: it may be of any JSON type
                raise settings.refusal("quant_method", f"this tool reads {', '.join(FORMATS)}")
            return settings
    return None


def restore_tensors(stored: Mapping[str, StoredTensor], settings: QuantizationConfig | None) -> dict[str, TensorReader]:
    """The readers of a checkpoint's tensors, by their names in the files.

    Args:
        settings: how they are quantized; None if they are not.

    Raises:
        CheckpointError: a setting that cannot be read, or tensors that do not fit it.
    """
    if settings is None:
        return {name: StoredReader(tensor) for name, tensor in stored.items()}
    return FORMATS[settings.method](stored, settings)
