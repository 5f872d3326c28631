"""`quant_method: auto-round`: integers found by AutoRound, packed as GPTQ or AWQ pack theirs.

`packing_format` says which, and how GPTQ's zero points are stored. Source: intel/auto-round,
`inference/convert_model.py` and `inference/backend.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..safetensors_file import StoredTensor
from ..tensors import TensorReader
from .awq import restore_awq
from .gptq import restore_gptq
from .settings import QuantizationConfig

LESS_ONE = {"checkpoint_format": "gptq"}  # zero points are stored less one
AS_THEY_ARE = {"checkpoint_format": "gptq_v2"}
GPTQ_PACKINGS = {
    "auto_round:auto_gptq": LESS_ONE,
    "auto_round:gptq": LESS_ONE,
    "auto": LESS_ONE,
    "auto_round:gptqmodel": AS_THEY_ARE,
    "auto_round": AS_THEY_ARE,
}
AWQ_PACKINGS = ("auto_round:auto_awq", "auto_round:awq")
NOT_QUANTIZED = (16, 32)  # bits


def restore_auto_round(stored: Mapping[str, StoredTensor], settings: QuantizationConfig) -> dict[str, TensorReader]:
    """Every tensor, quantized ones restored.

    Raises:
        CheckpointError: a setting that cannot be read, or parts that do not fit.
    """
    packing = settings.require("packing_format", (*GPTQ_PACKINGS, *AWQ_PACKINGS), "auto_round:gptq")
    settings.require("data_type", ("int",), "int")
    settings.require("act_bits", NOT_QUANTIZED, NOT_QUANTIZED[0])
    for key in ("rotation_config", "spinquant_config"):
        settings.require_empty(key)
    exceptions = settings.inside("extra_config")
    for name in exceptions.values:
        _check_exception(exceptions.inside(name), settings)
    if packing in AWQ_PACKINGS:
        return restore_awq(stored, settings)
    return restore_gptq(stored, replace(settings, values={**settings.values, **GPTQ_PACKINGS[packing]}))


def _check_exception(layers: QuantizationConfig, settings: QuantizationConfig) -> None:
    """Of layers with settings of their own, read those that are not quantized, or quantized like the others.

    Raises:
        CheckpointError: they are quantized in another way.
    """
    if layers.get("bits") in NOT_QUANTIZED:
        return
    for key in ("bits", "group_size", "data_type"):
        if layers.get(key) is not None:
            layers.require(key, (settings.get(key, "int"),))
