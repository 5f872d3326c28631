"""The same bytes are written however a tensor is split into pieces and strips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.checkpoint import Checkpoint
from qwen3vl_export.exporter.checkpoint.files import SINGLE
from qwen3vl_export.exporter.checkpoint.tensors import TransposedReader
from qwen3vl_export.exporter.weights import stream
from qwen3vl_export.exporter.weights.inputs import TRANSPOSE_MATRIX, Source, WeightTransform
from qwen3vl_export.exporter.weights.packing import TORCH_DTYPES, Blockwise, Packing, PerColumn
from qwen3vl_export.exporter.weights.stream import Destination, ErrorSums, split_pieces, stream_piece

from ...fixtures.official import config

FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TRANSPOSED: WeightTransform = (TRANSPOSE_MATRIX,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(0)
    tensors = {"matrix": (50, 24), "stack": (3, 10, 32), "swapped": (3, 10, 32), "row": (400,)}
    save_file({n: torch.randn(s, generator=generator).bfloat16() for n, s in tensors.items()}, folder / SINGLE)
    checkpoint = Checkpoint(folder, "random", "local", config("2b"))
    checkpoint.tensors["swapped"] = TransposedReader(checkpoint.tensors["swapped"])
    return checkpoint


def write(checkpoint: Checkpoint, path: Path, name: str, source: Source, dtype: ir.DataType) -> tuple[bytes, float]:
    """Stream a tensor, its parts one behind the other; returns the bytes of the file and the relative error."""
    shape = checkpoint.tensors[name].shape
    rows, width = int(torch.Size(shape[:-1]).numel()), shape[-1]
    stored_shape = (*shape[::-1],) if source.transform else shape
    parts = {"": (stored_shape, dtype)}
    if source.packing is not None:
        parts = {name: (part.shape, part.dtype) for name, part in source.packing.parts(rows, width).items()}
    progress, end = [], 0
    with path.open("wb") as file:
        destinations = {}
        for part, (part_shape, part_dtype) in parts.items():
            transposed = replace(source, part=part).is_transposed
            destinations[part] = Destination(file.fileno(), end, part_shape, part_dtype, transposed)
            end += destinations[part].length
        sums = ErrorSums()
        for piece in split_pieces(shape, source.read_transform):
            sums.add(stream_piece(checkpoint, name, source, destinations, piece, progress.append))
    assert sum(progress) == end == path.stat().st_size
    return path.read_bytes(), sums.relative


@pytest.mark.parametrize(
    ("name", "transform", "packing", "dtype"),
    [
        ("matrix", (), None, FLOAT),
        ("stack", (), None, HALF),
        ("swapped", (), None, HALF),
        ("swapped", (), None, BFLOAT),
        ("row", (), None, HALF),
        ("row", (), None, BFLOAT),
        ("matrix", TRANSPOSED, None, HALF),
        ("matrix", TRANSPOSED, None, BFLOAT),
        ("matrix", (), Blockwise(4, 16, False, False, FLOAT), FLOAT),
        ("stack", (), Blockwise(4, 32, True, False, HALF), FLOAT),
        ("swapped", (), Blockwise(4, 16, True, False, HALF), FLOAT),
        ("matrix", (), Blockwise(8, 32, True, True, HALF), FLOAT),
        ("matrix", (), PerColumn(FLOAT), FLOAT),
    ],
)
def test_cuts_make_no_difference(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    transform: WeightTransform,
    packing: Packing | None,
    dtype: ir.DataType,
) -> None:
    source = Source(name, transform, packing)
    whole, error = write(checkpoint, tmp_path / "whole", name, source, dtype)
    if packing is None:
        tensor = checkpoint.read(name).to(TORCH_DTYPES[dtype])
        assert whole == (tensor.t() if transform else tensor).contiguous().view(torch.uint8).numpy().tobytes()
    for setting in ("PIECE_VALUES", "STRIP_VALUES"):
        monkeypatch.setattr(stream, setting, 170)
    split, split_error = write(checkpoint, tmp_path / "cut", name, source, dtype)
    assert split == whole and split_error == pytest.approx(error, rel=1e-5)


def test_scales_of_another_dtype_than_they_are_stored_in_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    packing = Blockwise(8, 16, True, False, FLOAT)
    parts = packing.parts(50, 24)
    with (tmp_path / "out").open("wb") as file, pytest.raises(BuildError, match=r"scales are packed as torch\.float32"):
        destinations = {
            name: Destination(file.fileno(), 0, part.shape, BFLOAT if name == "scales" else part.dtype)
            for name, part in parts.items()
        }
        stream_piece(checkpoint, "matrix", Source("matrix", (), packing), destinations, slice(0, 50), lambda _: None)
