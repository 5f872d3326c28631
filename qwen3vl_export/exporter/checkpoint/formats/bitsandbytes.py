"""`quant_method: bitsandbytes`: 4-bit codes of a table with a scale per block, or int8 with a scale per row.

In 4 bits, `X.weight` holds a matrix's codes row after row, two to a byte, the first in its upper half, in bytes or in
another dtype of the same bytes; every `blocksize` of them share a number of `X.weight.absmax`. With double quantization
these are codes too, of `X.weight.nested_quant_map`, in blocks of `X.weight.nested_absmax`, from which an offset was
subtracted. `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`) is JSON: shape, block sizes, offset, and the dtype to
which values are rounded. In 8 bits, `X.SCB` [R] holds the largest magnitude of each row, which has the code 127.
Which matrices are quantized follows from the tensors; activations stay as they are.
Source: bitsandbytes, `functional.py`, `QuantState`, `dequantize_4bit` and `int8_vectorwise_dequant`; NF4: Dettmers et
al., QLoRA, arXiv:2305.14314, appendix E.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

import torch

from ....errors import CheckpointError
from ..safetensors_file import DOWNLOAD_AGAIN, StoredTensor
from ..tensors import StoredReader, TensorReader
from .flat import LookupReader, MappedReader, ReshapedReader, as_column
from .parts import Parts, collect_parts
from .readers import ScaledReader, UnpackedReader, read_whole
from .settings import UNQUANTIZED, QuantizationConfig

STATE, WEIGHT, SCALES = ".weight.quant_state.bitsandbytes__", ".weight", ".weight.absmax"
NESTED_SCALES, NESTED_TABLE = ".weight.nested_absmax", ".weight.nested_quant_map"
FP4_MAGNITUDES = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
TABLES = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    "fp4": (*FP4_MAGNITUDES, *(0.0 - magnitude for magnitude in FP4_MAGNITUDES)),
}
UPPER_FIRST = (1, 0)  # places of a byte's codes
ROUNDED_TO = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROW_SCALES, ROW_FORMAT = ".SCB", ".weight_format"
BY_ROWS = 0  # the layout of int8 weights; older releases had others for certain GPUs


def restore_bitsandbytes(stored: Mapping[str, StoredTensor], settings: QuantizationConfig) -> dict[str, TensorReader]:
    """Every tensor, quantized ones restored.

    Raises:
        CheckpointError: a setting that cannot be read, or parts that do not fit.
    """
    settings.require("bnb_4bit_quant_type", tuple(TABLES), "fp4")
    states = tuple(STATE + kind for kind in TABLES)
    four_bit, rest = collect_parts(
        stored, (SCALES, *states), (WEIGHT, ".weight.quant_map", NESTED_SCALES, NESTED_TABLE)
    )
    eight_bit, rest = collect_parts(rest, (ROW_SCALES,), (WEIGHT, ROW_FORMAT))
    restored: dict[str, TensorReader] = {name: StoredReader(tensor) for name, tensor in rest.items()}
    restored |= {parts.name + WEIGHT: _restore_blocks(parts) for parts in four_bit}
    return restored | {parts.name + WEIGHT: _restore_rows(parts) for parts in eight_bit}


def _restore_blocks(parts: Parts) -> TensorReader:
    kind = "fp4" if f"{STATE}fp4" in parts.tensors else "nf4"
    state = _read_state(parts, STATE + kind)
    shape = state.size("shape")
    if shape is None:
        raise state.refusal("shape", "two positive numbers are read")
    dtype = ROUNDED_TO[state.require("dtype", tuple(ROUNDED_TO))]
    column = (prod(shape), 1)
    packed = as_column(parts.take(WEIGHT), torch.uint8)
    if packed.shape[0] != -(-column[0] // 2):
        raise CheckpointError(
            f"{packed.file}: tensor {parts.name}{WEIGHT} has {packed.shape[0]} bytes, which are not 4 bits of "
            f"{list(shape)}",
            DOWNLOAD_AGAIN,
        )
    codes = LookupReader(UnpackedReader(packed, column, 4, axis=0, places=UPPER_FIRST), TABLES[kind])
    block = state.count("blocksize"), 1
    values = ScaledReader(codes, parts.spread(SCALES, _block_scales(parts, state), column, (block,)))
    return ReshapedReader(MappedReader(values, lambda numbers: numbers.copy_(numbers.to(dtype))), shape)


def _block_scales(parts: Parts, state: QuantizationConfig) -> TensorReader:
    """The scales of blocks, a column."""
    stored = as_column(parts.take(SCALES))
    if stored.dtype != torch.uint8:
        return stored
    codes = LookupReader(stored, tuple(read_whole(parts.take(NESTED_TABLE, (256,))).tolist()))
    block, offset = (state.count("nested_blocksize"), 1), state.number("nested_offset")
    nested = parts.spread(NESTED_SCALES, as_column(parts.take(NESTED_SCALES)), codes.shape, (block,))
    return MappedReader(ScaledReader(codes, nested), lambda numbers: numbers.add_(offset))


def _read_state(parts: Parts, suffix: str) -> QuantizationConfig:
    """The JSON of a matrix.

    Raises:
        CheckpointError: it is missing, or is not an object.
    """
    stored, name = parts.take(suffix), parts.name + suffix
    try:
        values = json.loads(bytes(read_whole(stored).view(torch.uint8).numpy()))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{stored.file}: tensor {name} is not a JSON object", DOWNLOAD_AGAIN)
    return QuantizationConfig(stored.file, values, name)


def _restore_rows(parts: Parts) -> TensorReader:
    stored = parts.get(ROW_FORMAT)
    if stored is not None and (layout := int(read_whole(stored))) != BY_ROWS:
        raise CheckpointError(
            f"{stored.file}: tensor {parts.name}{ROW_FORMAT} is {layout}, this tool reads {BY_ROWS}, rows",
            UNQUANTIZED,
        )
    codes = StoredReader(parts.take(WEIGHT))
    if codes.dtype != torch.int8:
        raise CheckpointError(
            f"{codes.file}: tensor {parts.name}{WEIGHT} is {codes.dtype}, with {ROW_SCALES} it is int8", DOWNLOAD_AGAIN
        )
    scales = parts.spread(ROW_SCALES, as_column(parts.take(ROW_SCALES)), codes.shape, ((1, codes.shape[1]),))
    return MappedReader(ScaledReader(codes, scales), lambda numbers: numbers.mul_(1 / 127))
