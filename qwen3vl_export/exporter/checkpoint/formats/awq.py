"""`quant_method: awq`: 4-bit integers in 32-bit words along a matrix's rows, with scales and zero points per group.

Of `X.weight` [R, C], `X.qweight` holds the transpose, [C, R / 8] words, rounded up; `X.scales` [C / g, R] and
`X.qzeros` [C / g, R / 8] are those of g consecutive columns. The eight integers of a word are interleaved: the first,
third, fifth and seventh quarter bytes from the lowest hold the values 0, 2, 4, 6 … in the order of AutoAWQ's `gemm`
kernel.
Source: casper-hansen/AutoAWQ, `awq/utils/packing_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..safetensors_file import StoredTensor
from ..tensors import StoredReader, TensorReader
from .parts import Parts, collect_parts
from .readers import WORD_BITS, ColumnsReader, ScaledReader, UnpackedReader
from .settings import QuantizationConfig

BITS = 4
PER_WORD = WORD_BITS // BITS
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of a word's values 0, 1, 2, …, counted from its lowest bits


def restore_awq(stored: Mapping[str, StoredTensor], settings: QuantizationConfig) -> dict[str, TensorReader]:
    """Every tensor, quantized ones restored.

    Raises:
        CheckpointError: a setting that cannot be read, or parts that do not fit.
    """
    settings.require("bits", (BITS,), BITS)
    for key in ("version", "format", "checkpoint_format"):  # AutoAWQ, transformers and GPTQModel call it differently
        settings.require(key, ("gemm", "GEMM"), "gemm")
    group = settings.group("group_size", 128)
    quantized, rest = collect_parts(stored, (".qweight", ".qzeros"), (".scales",))
    restored: dict[str, TensorReader] = {name: StoredReader(tensor) for name, tensor in rest.items()}
    for parts in quantized:
        restored[f"{parts.name}.weight"] = _restore(parts, group)
    return restored


def _restore(parts: Parts, group: int | None) -> TensorReader:
    scales = ColumnsReader(parts.take(".scales"))
    rows, columns = scales.shape[0], parts.take(".qweight").shape[0]
    shape, per_column = (rows, columns), -(-rows // PER_WORD)
    blocks = ((1, group or columns),)
    words = parts.take(".qweight", (columns, per_column))
    zero_words = ColumnsReader(parts.take(".qzeros", (scales.shape[1], per_column)))
    zero_points = UnpackedReader(zero_words, scales.shape, BITS, axis=0, places=PLACES)
    return ScaledReader(
        UnpackedReader(ColumnsReader(words), shape, BITS, axis=0, places=PLACES),
        parts.spread(".scales", scales, shape, blocks),
        parts.spread(".qzeros", zero_points, shape, blocks),
    )
