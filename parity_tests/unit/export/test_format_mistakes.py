"""A mistake in reading a quantized form is found, by far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity_tests.fixtures.checkpoint_edits import edit_settings
from parity_tests.fixtures.quantized_checkpoints import FORMS, WriteForm, is_quantized, write_quantized_checkpoint
from parity_tests.harness.sides.pytorch.restored_weights import restored_weights
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.formats import awq, bitsandbytes, flat
from qwen3vl_export.exporter.checkpoint.formats.readers import ScaledReader, SpreadReader, UnpackedReader
from qwen3vl_export.exporter.checkpoint.formats.settings import QuantizationConfig
from qwen3vl_export.exporter.checkpoint.tensors import Allocator, StoredReader, WrappedReader, allocate_anew


def transpose_scales(patch: pytest.MonkeyPatch) -> None:
    read = StoredReader.read

    def transposed(reader: StoredReader, rows: slice, allocate: Allocator) -> Tensor:
        grid = read(reader, slice(0, reader.shape[0]), allocate)
        is_scale = reader.dtype == torch.float32
        return grid.t().reshape(grid.shape)[rows] if is_scale else read(reader, rows, allocate)

    patch.setattr(StoredReader, "read", transposed)


def shift_zero_points(patch: pytest.MonkeyPatch) -> None:
    read = SpreadReader.read

    def shifted(reader: SpreadReader, rows: slice, allocate: Allocator) -> Tensor:
        return read(reader, rows, allocate) + int(reader.dtype == torch.int32)

    patch.setattr(SpreadReader, "read", shifted)


def forget_zero_points(patch: pytest.MonkeyPatch) -> None:
    init = ScaledReader.__init__
    patch.setattr(ScaledReader, "__init__", lambda reader, codes, scales, zero_points=None: init(reader, codes, scales))


def ignore_groups(patch: pytest.MonkeyPatch) -> None:
    init = SpreadReader.__init__
    patch.setattr(
        SpreadReader,
        "__init__",
        lambda reader, grid, shape, block, column_groups=None: init(reader, grid, shape, block),
    )


def repeat_first_scale(patch: pytest.MonkeyPatch) -> None:
    """A scale of a row, used for every row."""
    read = SpreadReader.read
    patch.setattr(SpreadReader, "read", lambda reader, rows, allocate: read(reader, slice(0, 1), allocate))


def halve_offset(patch: pytest.MonkeyPatch) -> None:
    """Packed codes taken for signed ones of half the offset."""
    init = UnpackedReader.__init__

    def halved(reader: UnpackedReader, *parts: Any, offset: int = 0, **settings: Any) -> None:
        init(reader, *parts, offset=offset // 2, **settings)

    patch.setattr(UnpackedReader, "__init__", halved)


def reverse_words(patch: pytest.MonkeyPatch) -> None:
    """The codes of a word in the opposite order."""
    init = UnpackedReader.__init__

    def reverse(reader: UnpackedReader, words: Any, shape: Any, bits: int, **settings: Any) -> None:
        places = settings.pop("places", range(32 // bits))
        init(reader, words, shape, bits, places=tuple(places)[::-1], **settings)

    patch.setattr(UnpackedReader, "__init__", reverse)


@dataclass(frozen=True)
class NextReader(WrappedReader):
    """A column, each number in the place of the one before."""

    def read(self, rows: slice, allocate: Allocator) -> Tensor:
        return self.reader.read(slice(0, self.shape[0]), allocate_anew).roll(-1, 0)[rows]


def take_next_block(patch: pytest.MonkeyPatch) -> None:
    scales = bitsandbytes._block_scales
    patch.setattr(bitsandbytes, "_block_scales", lambda parts, state: NextReader(scales(parts, state)))


def reverse_tables(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bitsandbytes, "TABLES", {kind: table[::-1] for kind, table in bitsandbytes.TABLES.items()})


def forget_functions(patch: pytest.MonkeyPatch) -> None:
    """The division by 127, or the rounding."""
    patch.setattr(flat.MappedReader, "read", lambda reader, rows, allocate: reader.reader.read(rows, allocate))


Plant = Callable[[pytest.MonkeyPatch], None]


MISTAKES: list[tuple[str, Plant]] = [
    ("fp8", transpose_scales),
    ("packed", halve_offset),
    ("packed", reverse_words),
    ("packed-asymmetric", shift_zero_points),
    ("packed-asymmetric", forget_zero_points),
    ("packed-actorder", ignore_groups),
    ("float8-rows", repeat_first_scale),
    ("float8-blocks", transpose_scales),
    ("int8-rows", repeat_first_scale),
    ("gptq", shift_zero_points),
    ("gptq-v2", shift_zero_points),
    ("gptq-v2", reverse_words),
    ("gptq-desc-act", ignore_groups),
    ("awq", lambda patch: patch.setattr(awq, "PLACES", tuple(range(8)))),
    ("awq", shift_zero_points),
    ("awq", forget_zero_points),
    ("nf4", take_next_block),
    ("nf4", reverse_tables),
    ("nf4", lambda patch: patch.setattr(bitsandbytes, "UPPER_FIRST", (0, 1))),
    ("nf4-nested", take_next_block),
    ("nf4-nested", lambda patch: patch.setattr(QuantizationConfig, "number", lambda state, key: 0.0)),
    ("fp4", reverse_tables),
    ("int8-bitsandbytes", forget_functions),
    ("int8-bitsandbytes", repeat_first_scale),
    ("auto-round-gptq", shift_zero_points),
    ("auto-round-gptq-v2", shift_zero_points),
    ("auto-round-awq", reverse_words),
]


@pytest.mark.parametrize(("form", "plant"), MISTAKES)
def test_a_mistake_in_a_reader_parts_from_the_reference(
    write: WriteForm, form: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By far more than any verification's limits, in every matrix of more than one block."""
    directory, _ = write(form)
    restored = restored_weights(directory, FORMS[form].settings)
    plant(monkeypatch)
    opened = open_checkpoint(str(directory))
    for name in filter(is_quantized, restored):
        expected = restored[name]
        if plant is transpose_scales and min(expected.shape) <= 128:
            continue  # a row or column of blocks is its own transpose
        assert (opened.read(name) - expected).norm() > 0.02 * expected.norm(), name


@pytest.mark.parametrize(
    ("form", "settings"),
    [("gptq", {"checkpoint_format": "gptq_v2"}), ("auto-round-gptq", {"packing_format": "auto_round:gptqmodel"})],
)
def test_zero_points_of_another_version_part_from_the_values(
    form: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    values = write_quantized_checkpoint(tmp_path, form)
    edit_settings(tmp_path, lambda written: written.update(settings))
    opened = open_checkpoint(str(tmp_path))
    assert not any(torch.allclose(opened.read(name), values[name], rtol=0.1) for name in filter(is_quantized, values))
