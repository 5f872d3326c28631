"""Matrices that other packages packed are restored to their values, bit for bit, by the exporter and by the harness.

`scripts/record_packings.py` recorded what each package stores of a small matrix, and what it restores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity_tests.fixtures.bitsandbytes_forms import normal_floats, small_floats
from parity_tests.fixtures.paths import FIXTURES
from parity_tests.fixtures.quantized_checkpoints import FORMS
from parity_tests.harness.sides.pytorch.restored_weights import METHODS
from qwen3vl_export.exporter.checkpoint.formats import restore_tensors
from qwen3vl_export.exporter.checkpoint.formats.bitsandbytes import TABLES
from qwen3vl_export.exporter.checkpoint.formats.settings import QuantizationConfig
from qwen3vl_export.exporter.checkpoint.safetensors_file import stored_tensors
from qwen3vl_export.exporter.checkpoint.tensors import allocate_anew

FILE = FIXTURES / "packings.safetensors"


def recorded_cases() -> dict[str, dict[str, Any]]:
    """The settings of every case, by its name."""
    with safe_open(FILE, framework="pt") as stored:
        return {case: json.loads(text)["settings"] for case, text in sorted(stored.metadata().items())}


def read_matrix(file: Path, prefix: str, settings: dict[str, Any], rows: slice = slice(None)) -> Tensor:
    """Rows of the matrix whose parts' names begin with `prefix`, as the exporter reads it."""
    parts = {name: tensor for name, tensor in stored_tensors(file).items() if name.startswith(prefix)}
    readers = restore_tensors(parts, QuantizationConfig(Path("config.json"), settings))
    (reader,) = readers.values()
    return reader.read(slice(*rows.indices(reader.shape[0])[:2]), allocate_anew)


CASES = recorded_cases()


@pytest.mark.parametrize("case", CASES)
def test_the_exporter_restores_the_values_of_the_package(case: str) -> None:
    values = load_file(FILE)[f"{case}/values"]
    for rows in (slice(None), slice(1, 2), slice(3, 8)):
        assert torch.equal(read_matrix(FILE, f"{case}/X.", CASES[case], rows).to(values.dtype), values[rows]), rows


@pytest.mark.parametrize("case", CASES)
def test_the_harness_restores_the_same_values(case: str) -> None:
    tensors = load_file(FILE)
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{case}/X.")}
    (restored,) = METHODS[CASES[case]["quant_method"]](parts, CASES[case]).values()
    assert torch.equal(restored.to(tensors[f"{case}/values"].dtype), tensors[f"{case}/values"])
    assert torch.equal(restored, read_matrix(FILE, f"{case}/X.", CASES[case]))


@pytest.mark.parametrize("form", FORMS)
def test_rows_need_not_fill_words_nor_blocks(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts, values = FORMS[form].quantize(torch.randn(20, 128))
    tensors = {f"X{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, tmp_path / "parts.safetensors")
    settings = FORMS[form].settings
    for rows in (slice(None), slice(19, 20), slice(3, 18)):
        assert torch.equal(read_matrix(tmp_path / "parts.safetensors", "X", settings, rows), values[rows]), rows
    (restored,) = METHODS[settings["quant_method"]](tensors, settings).values()
    assert torch.equal(restored, values)


def test_every_package_has_cases() -> None:
    packages = {case.partition("/")[0] for case in CASES}
    assert packages == {"bitsandbytes", "gptqmodel", "auto_gptq", "autoawq", "auto_round", "compressed_tensors"}


def test_tables_are_those_of_their_definitions() -> None:
    assert torch.equal(torch.tensor(TABLES["nf4"]), normal_floats())
    assert torch.equal(torch.tensor(TABLES["fp4"]), small_floats())
