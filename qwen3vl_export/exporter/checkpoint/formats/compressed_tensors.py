"""`quant_method: compressed-tensors`: integers or float8 with scales per matrix, row, group or block of values.

Of `X.weight` [R, C]: `X.weight_packed` [R, C / k] holds words of k unsigned integers along each row, half their range
above the signed ones; or `X.weight` itself is int8 or float8_e4m3fn. `X.weight_scale` is [1], [R, 1], [R, C / g] or a
grid of blocks; `X.weight_zero_point` has the same shape, in int8 or packed along its rows; `X.weight_g_idx` [C] names
the group of each column. Scales of activations are not used: activations stay as they are.
Source: vllm-project/compressed-tensors, `compressors/pack_quantized` and `quantization/lifecycle/forward.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ....errors import CheckpointError
from ..safetensors_file import DOWNLOAD_AGAIN, StoredTensor
from ..tensors import StoredReader, TensorReader
from .parts import Block, Parts, as_grid, collect_parts
from .readers import WORD_BITS, ScaledReader, SpreadReader, UnpackedReader, read_whole
from .settings import QuantizationConfig

SCALES, ZERO_POINTS, GROUPS = ".weight_scale", ".weight_zero_point", ".weight_g_idx"
MARKERS = (SCALES, ".weight_packed")  # a matrix with one of these is quantized
PARTS = (".weight", ".weight_shape", ZERO_POINTS, GROUPS)
LAYOUTS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
ACTIVATIONS = (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")
WHOLE = 1 << 62  # of rows or columns: all of them


def restore_compressed_tensors(
    stored: Mapping[str, StoredTensor], settings: QuantizationConfig
) -> dict[str, TensorReader]:
    """Every tensor, quantized ones restored.

    Raises:
        CheckpointError: a setting that cannot be read, or parts that do not fit.
    """
    settings.require("format", (*LAYOUTS, "mixed-precision"))
    settings.require("quantization_status", ("compressed",), "compressed")
    settings.inside("sparsity_config").require("format", ("dense",), "dense")
    for key in ("kv_cache_scheme", "transform_config"):
        settings.require_empty(key)
    blocks = tuple(dict.fromkeys(_blocks(settings)))
    quantized, rest = collect_parts(stored, MARKERS, PARTS)
    restored: dict[str, TensorReader] = {
        name: StoredReader(tensor) for name, tensor in rest.items() if not name.endswith(ACTIVATIONS)
    }
    for parts in quantized:
        restored[f"{parts.name}.weight"] = _restore(parts, blocks)
    return restored


def _blocks(settings: QuantizationConfig) -> Iterator[Block]:
    """Rows and columns that share a scale, of every group of modules in the settings."""
    groups = settings.inside("config_groups")
    for name in groups.values:
        group = groups.inside(name)
        group.require("format", LAYOUTS, LAYOUTS[0])
        weights = group.inside("weights")
        is_integer = weights.require("type", ("int", "float"), "int") == "int"
        weights.require("num_bits", (4, 8) if is_integer else (8,))
        strategy = weights.require("strategy", ("tensor", "channel", "group", "block"))
        if strategy == "block":
            yield weights.size("block_structure") or (128, 128)
        elif strategy == "group":
            yield 1, weights.group("group_size", -1) or WHOLE
        else:
            yield (1 if strategy == "channel" else WHOLE), WHOLE


def _restore(parts: Parts, blocks: tuple[Block, ...]) -> TensorReader:
    bits, codes = _codes(parts)
    groups = parts.get(GROUPS)
    if groups is not None and bool((read_whole(groups) < 0).any()):
        groups = None  # written before it was filled: columns are in order
    scales = as_grid(parts.take(SCALES))
    zero_points: SpreadReader | None = None
    stored = parts.get(ZERO_POINTS)
    if stored is not None:
        points: TensorReader = as_grid(stored)
        if stored.dtype == torch.int32:
            points = UnpackedReader(points, scales.shape, bits, axis=0, offset=1 << (bits - 1))
        zero_points = parts.spread(ZERO_POINTS, points, codes.shape, blocks, groups)
    return ScaledReader(codes, parts.spread(SCALES, scales, codes.shape, blocks, groups), zero_points)


def _codes(parts: Parts) -> tuple[int, TensorReader]:
    """Bits and signed codes of a matrix.

    Raises:
        CheckpointError: they are neither packed 4- or 8-bit integers nor int8 nor float8.
    """
    words = parts.get(".weight_packed")
    if words is None:
        codes = parts.take(".weight")
        if codes.dtype not in (torch.int8, torch.float8_e4m3fn):
            raise CheckpointError(
                f"{codes.file}: tensor {parts.name}.weight is {codes.dtype}, with scales it is int8 or float8_e4m3fn",
                DOWNLOAD_AGAIN,
            )
        return 8, StoredReader(codes)
    rows, columns = (int(size) for size in read_whole(parts.take(".weight_shape", (2,))))
    for bits in (4, 8):
        if words.shape == (rows, -(-columns * bits // WORD_BITS)):
            return bits, UnpackedReader(StoredReader(words), (rows, columns), bits, axis=1, offset=1 << (bits - 1))
    raise CheckpointError(
        f"{words.file}: tensor {parts.name}.weight_packed is {list(words.shape)}, which are not 4 or 8 bits of "
        f"{[rows, columns]}",
        DOWNLOAD_AGAIN,
    )
