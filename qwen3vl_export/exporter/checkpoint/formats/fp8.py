"""`quant_method: fp8`: float8 matrices with one scale per block, the form of the official FP8 releases.

`X` is float8_e4m3fn, `X_scale_inv` holds a scale for each block of `weight_block_size` values; X = float8 x scale.
Experts are stacks of matrices in the files' own layout, and so are their scales. Which matrices are quantized follows
from the tensors; `ignored_layers` repeats it. Scales of activations are not used: activations stay as they are.
Source: transformers `integrations/finegrained_fp8.py`, `Fp8Dequantize`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ....errors import CheckpointError
from ..safetensors_file import DOWNLOAD_AGAIN, StoredTensor
from ..tensors import StoredReader, TensorReader
from .parts import as_grid, collect_parts
from .readers import ScaledReader
from .settings import QuantizationConfig

SCALES = "_scale_inv"


def restore_fp8(stored: Mapping[str, StoredTensor], settings: QuantizationConfig) -> dict[str, TensorReader]:
    """Every tensor, float8 ones times their scales.

    Raises:
        CheckpointError: a setting that cannot be read, or scales that do not fit.
    """
    settings.require("fmt", ("e4m3",), "e4m3")
    settings.require("scale_fmt", ("float",), "float")
    settings.require("expert_dtype", ("fp8",), "fp8")
    block = settings.size("weight_block_size")
    quantized, rest = collect_parts(stored, (SCALES,), ("",))
    restored: dict[str, TensorReader] = {}
    for name, tensor in rest.items():
        if tensor.dtype == torch.float8_e4m3fn:
            raise CheckpointError(f"{tensor.file}: tensor {name}{SCALES} is missing", DOWNLOAD_AGAIN)
    for parts in quantized:
        codes = parts.take("")
        if codes.dtype != torch.float8_e4m3fn:
            raise CheckpointError(
                f"{codes.file}: tensor {parts.name} is {codes.dtype}, with scales it is float8_e4m3fn", DOWNLOAD_AGAIN
            )
        rows, columns = codes.shape[-2:]
        grid = as_grid(parts.take(SCALES), len(codes.shape))
        scales = parts.spread(SCALES, grid, codes.shape, (block or (rows, columns),))
        restored[parts.name] = ScaledReader(StoredReader(codes), scales)
    unscaled = {name: StoredReader(tensor) for name, tensor in rest.items() if not name.endswith("activation_scale")}
    return {**unscaled, **restored}
