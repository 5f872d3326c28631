"""However a tensor is cut into pieces and strips, the same bytes are written."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.checkpoint import SINGLE, Checkpoint
from qwen3vl_export.exporter.weights import in_columns
from qwen3vl_export.exporter.weights.inputs import Layout, Source
from qwen3vl_export.exporter.weights.packing import TORCH, Blockwise, Packing, PerColumn
from qwen3vl_export.exporter.weights.stream import Region, Squares, pieces, stream

from ...fixtures.official import config

FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
STREAMING = importlib.import_module(stream.__module__)  # the package has a function of that name
TURNED: Layout = (("Transpose", (1, 0)),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(0)
    tensors = {"matrix": (50, 24), "stack": (3, 10, 32), "swapped": (3, 10, 32), "row": (400,)}
    save_file({n: torch.randn(s, generator=generator).bfloat16() for n, s in tensors.items()}, folder / SINGLE)
    found = Checkpoint(folder, "random", "local", config("2b"))
    found.tensors["swapped"] = replace(found.tensors["swapped"], shape=(3, 32, 10), swapped=True)
    return found


def written(checkpoint: Checkpoint, path: Path, name: str, source: Source, dtype: ir.DataType) -> tuple[bytes, float]:
    """The bytes `stream` writes for all parts, each behind the one before, and the error it tells."""
    shape = checkpoint.tensors[name].shape
    rows, width = int(torch.Size(shape[:-1]).numel()), shape[-1]
    turned = (*shape[::-1],) if source.layout else shape
    parts = {"": (turned, dtype)}
    if source.packing is not None:
        parts = {part: (of.shape, of.dtype) for part, of in source.packing.parts(rows, width).items()}
    told, end = [], 0
    with path.open("wb") as file:
        regions = {}
        for part, (of, kind) in parts.items():
            own = Source(name, source.layout, source.packing, part)
            regions[part] = Region(file.fileno(), end, of, kind, in_columns(own))
            end += regions[part].length
        squares = Squares()
        for piece in pieces(shape, source.layout):
            squares.add(stream(checkpoint, name, source, regions, piece, told.append))
    assert sum(told) == end == path.stat().st_size
    return path.read_bytes(), squares.error


@pytest.mark.parametrize(
    ("name", "layout", "packing", "dtype"),
    [
        ("matrix", (), None, FLOAT),
        ("stack", (), None, HALF),
        ("swapped", (), None, HALF),
        ("swapped", (), None, BFLOAT),
        ("row", (), None, HALF),
        ("row", (), None, BFLOAT),
        ("matrix", TURNED, None, HALF),
        ("matrix", TURNED, None, BFLOAT),
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
    layout: Layout,
    packing: Packing | None,
    dtype: ir.DataType,
) -> None:
    source = Source(name, layout, packing)
    whole, error = written(checkpoint, tmp_path / "whole", name, source, dtype)
    if packing is None:
        wanted = checkpoint.read(name).to(TORCH[dtype])
        assert whole == (wanted.t() if layout else wanted).contiguous().view(torch.uint8).numpy().tobytes()
    for setting in ("PIECE_VALUES", "STRIP_VALUES"):
        monkeypatch.setattr(STREAMING, setting, 170)
    cut, same = written(checkpoint, tmp_path / "cut", name, source, dtype)
    assert cut == whole and same == pytest.approx(error, rel=1e-5)


def test_scales_of_another_dtype_than_they_are_stored_in_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    packing = Blockwise(8, 16, True, False, FLOAT)
    of = {part: (found.shape, found.dtype) for part, found in packing.parts(50, 24).items()}
    with (tmp_path / "out").open("wb") as file, pytest.raises(BuildError, match=r"scales are packed as torch\.float32"):
        regions = {
            part: Region(file.fileno(), 0, shape, BFLOAT if part == "scales" else d) for part, (shape, d) in of.items()
        }
        stream(checkpoint, "matrix", Source("matrix", (), packing), regions, slice(0, 50), lambda _: None)
