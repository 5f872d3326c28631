"""Tensors of safetensors files are read row by row as the library reads them; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint.safetensors_file import stored_tensors


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A file with tensors of the dtypes that weights and codes have, of several ranks, and one without values."""
    torch.manual_seed(0)
    tensors = {
        "double": torch.randn(3, 5, dtype=torch.float64),
        "single": torch.randn(7, 2, 3),
        "half": torch.randn(11).half(),
        "brain": torch.randn(6, 4).bfloat16(),
        "codes": torch.randint(-100, 100, (5, 3), dtype=torch.int8),
        "words": torch.randint(-(2**31), 2**31, (5, 3), dtype=torch.int64).int(),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def test_rows_are_those_of_the_library(shard: Path) -> None:
    entries, tensors = stored_tensors(shard), load_file(shard)
    assert set(entries) == set(tensors)
    for name, tensor in tensors.items():
        stored = entries[name]
        assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(stored.read(slice(0, len(tensor) if tensor.ndim else 0), torch.empty_like(tensor)), tensor)
        if tensor.ndim:
            some = tensor[1:-1]
            assert torch.equal(stored.read(slice(1, 1 + len(some)), torch.empty_like(some)), some)


def test_a_file_cut_short_after_it_was_opened_is_an_error(shard: Path) -> None:
    stored = stored_tensors(shard)
    with shard.open("r+b") as file:
        file.truncate(stored["single"].offset + 40)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: shorter than when it was opened\. Download it again"
    ):
        stored["single"].read(slice(0, 7), torch.empty(7, 2, 3))


def test_a_file_cut_short_before_is_not_opened(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        stored_tensors(shard)


def test_a_dtype_that_weights_never_have_is_named(tmp_path: Path) -> None:
    save_file({"model.waves": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor model\.waves has dtype C64, weights have F64, F32, F16, BF16\."):
        stored_tensors(tmp_path / "model.safetensors")
