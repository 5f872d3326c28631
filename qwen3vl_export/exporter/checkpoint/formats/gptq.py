"""`quant_method: gptq`: integers in 32-bit words along a matrix's columns, with scales and zero points per group.

Of `X.weight` [R, C], `X.qweight` holds the transpose, [C / k, R] words of k integers, rounded up; `X.scales` [G, R] and
`X.qzeros` [G, R / k] are those of G groups of columns, and `X.g_idx` [C] names each column's group (with `desc_act`
they are not consecutive). Zero points are stored less one (`checkpoint_format: gptq`, subtracted from whole words: a
zero point of 0 borrows from the next, and gets it back when it is read) or as they are (`gptq_v2`). Source:
ModelCloud/GPTQModel, `utils/model.py` and `nn_modules/qlinear`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ....errors import CheckpointError
from ..safetensors_file import DOWNLOAD_AGAIN, StoredTensor
from ..tensors import StoredReader, TensorReader
from .parts import Parts, collect_parts
from .readers import WORD_BITS, ColumnsReader, ScaledReader, UnpackedReader, read_whole
from .settings import QuantizationConfig

SKIP = "-:"  # begins a pattern of `dynamic` whose modules are not quantized


def restore_gptq(stored: Mapping[str, StoredTensor], settings: QuantizationConfig) -> dict[str, TensorReader]:
    """Every tensor, quantized ones restored.

    Raises:
        CheckpointError: a setting that cannot be read, or parts that do not fit.
    """
    bits = settings.require("bits", (4, 8))
    group = settings.group("group_size", 128)
    settings.require("pack_dtype", ("int32",), "int32")
    form = settings.require("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    if any(not pattern.startswith(SKIP) for pattern in settings.inside("dynamic").values):
        raise settings.refusal("dynamic", f"of such rules, this tool reads those that skip modules, {SKIP!r}")
    word_offset = sum(1 << shift for shift in range(0, WORD_BITS, bits)) if form == "gptq" else 0
    quantized, rest = collect_parts(stored, (".qweight", ".qzeros"), (".scales", ".g_idx"))
    restored: dict[str, TensorReader] = {name: StoredReader(tensor) for name, tensor in rest.items()}
    for parts in quantized:
        restored[f"{parts.name}.weight"] = _restore(parts, bits, group, word_offset, bool(settings.get("desc_act")))
    return restored


def _restore(parts: Parts, bits: int, group: int | None, word_offset: int, desc_act: bool) -> TensorReader:
    per_word = WORD_BITS // bits
    words, stored_groups = parts.take(".qweight"), parts.get(".g_idx")
    columns = words.shape[0] * per_word if stored_groups is None else stored_groups.shape[0]
    shape = (words.shape[1], columns)
    words = parts.take(".qweight", (-(-columns // per_word), shape[0]))
    group_of_columns = _check_groups(parts, columns, desc_act)
    blocks = ((1, group or columns),)
    scales = ColumnsReader(parts.take(".scales"))
    zero_points = UnpackedReader(
        ColumnsReader(parts.take(".qzeros", (scales.shape[1], -(-shape[0] // per_word)))),
        scales.shape,
        bits,
        axis=0,
        word_offset=word_offset,
    )
    return ScaledReader(
        UnpackedReader(ColumnsReader(words), shape, bits, axis=1),
        parts.spread(".scales", scales, shape, blocks, group_of_columns),
        parts.spread(".qzeros", zero_points, shape, blocks, group_of_columns),
    )


def _check_groups(parts: Parts, columns: int, desc_act: bool) -> StoredTensor | None:
    """The stored group of each column; None where groups are consecutive and not stored.

    Raises:
        CheckpointError: it is missing though columns are reordered, or names a group that has no scale.
    """
    if parts.get(".g_idx") is None and not desc_act:
        return None
    stored = parts.take(".g_idx", (columns,))
    groups, count = read_whole(stored), parts.take(".scales").shape[0]
    lowest, highest = (int(bound) for bound in torch.aminmax(groups))
    if lowest < 0 or highest >= count:
        raise CheckpointError(
            f"{stored.file}: tensor {parts.name}.g_idx names groups {lowest} to {highest} of {count}", DOWNLOAD_AGAIN
        )
    return stored
