"""Quantized checkpoints are read as their forms define them, whole and in strips of rows, on both sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.checkpoint_edits import edit_settings, edit_tensors
from parity_tests.fixtures.forms_table import QUANTIZED
from parity_tests.fixtures.moe_checkpoint import WEIGHTS, split_experts, write_moe_checkpoint
from parity_tests.fixtures.paths import TINY
from parity_tests.fixtures.quantized_checkpoints import FORMS, WriteForm, is_quantized, write_quantized_checkpoint
from parity_tests.harness.sides.pytorch.restored_weights import restored_weights
from parity_tests.harness.sides.pytorch.torch_model import load_model
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.formats import readers
from qwen3vl_export.exporter.submodules import check_tensors

Q = "model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_restored(write: WriteForm, form: str) -> None:
    directory, values = write(form)
    opened = open_checkpoint(str(directory))
    check_tensors(opened, torch.float32)
    assert set(opened.tensors) == set(values)
    for name, tensor in values.items():
        assert opened.tensors[name].dtype == (torch.float32 if is_quantized(name) else torch.bfloat16), name
        assert torch.equal(opened.read(name), tensor), name
    forms_table.built(QUANTIZED, f"`{FORMS[form].settings['quant_method']}`: {form}")


@pytest.mark.parametrize("form", FORMS)
def test_strips_of_rows_are_those_of_the_whole(write: WriteForm, form: str) -> None:
    directory, values = write(form)
    opened = open_checkpoint(str(directory))
    for name in filter(is_quantized, values):
        for rows in (slice(0, 1), slice(5, 6), slice(7, 43), slice(len(values[name]) - 3, len(values[name]))):
            assert torch.equal(opened.read(name, rows), values[name][rows]), (name, rows)


@pytest.mark.parametrize("form", FORMS)
def test_the_reference_restores_the_same_values(write: WriteForm, form: str) -> None:
    directory, values = write(form)
    restored = restored_weights(directory, FORMS[form].settings)
    assert set(restored) == set(values)
    for name, tensor in values.items():
        assert torch.equal(restored[name], tensor), name


def test_float8_is_restored_as_transformers_does(write: WriteForm) -> None:
    directory, values = write("fp8")
    stored = load_file(directory / WEIGHTS)
    opened = open_checkpoint(str(directory))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name in filter(is_quantized, values):
            parts = {name: stored[name], f"{name}_scale_inv": stored[f"{name}_scale_inv"].to(torch.float32)}
            operation: Any = Fp8Dequantize(None)
            operation._get_target_dtype = lambda model, layer, dtype=dtype: dtype
            assert torch.equal(operation.convert(parts)[name][0], opened.read(name).to(dtype)), name


def test_experts_in_float8_are_read_in_the_published_layout(tmp_path: Path) -> None:
    values = write_quantized_checkpoint(tmp_path / "fp8", "fp8", write_moe_checkpoint(tmp_path / "moe"))
    opened = open_checkpoint(str(tmp_path / "fp8"))
    check_tensors(opened, torch.float32)
    experts = [name for name in values if ".mlp.experts." in name]
    assert len(experts) == 6
    for name in experts:
        assert torch.equal(opened.read(name), values[name].transpose(1, 2)), name
        assert torch.equal(opened.read(name, slice(3, 5)), values[name][3:5].transpose(1, 2)), name
    restored = restored_weights(tmp_path / "fp8", FORMS["fp8"].settings)
    assert all(torch.equal(restored[name], values[name]) for name in values)
    forms_table.built(QUANTIZED, "`fp8`: stacked experts in the published layout")


@pytest.mark.parametrize("form", ["fp8", "gptq-desc-act"])
def test_quantized_experts_one_by_one_are_stacked(tmp_path: Path, form: str) -> None:
    moe = write_moe_checkpoint(tmp_path / "moe", "modules")
    edit_tensors(moe, lambda tensors: (split := split_experts(tensors), tensors.clear(), tensors.update(split)))
    values = write_quantized_checkpoint(tmp_path / form, form, moe)
    opened = open_checkpoint(str(tmp_path / form))
    check_tensors(opened, torch.float32)
    loaded = load_model(tmp_path / form).state_dict()
    for name, reader in opened.tensors.items():
        assert torch.equal(opened.read(name).float(), loaded[name]), name
        assert reader.shape == tuple(loaded[name].shape)
    expert = "model.language_model.layers.2.mlp.experts"
    rows = opened.read(f"{expert}.gate_up_proj", slice(5, 6))[0]
    assert torch.equal(rows, torch.cat([values[f"{expert}.5.{part}_proj.weight"] for part in ("gate", "up")]))
    forms_table.built(QUANTIZED, f"{form}, experts of one tensor each")


def test_the_reference_loads_experts_one_by_one(tmp_path: Path) -> None:
    """transformers 5.23 does not: it would leave random ones."""
    moe = write_moe_checkpoint(tmp_path, "modules")
    values = load_file(moe / WEIGHTS)
    save_file(split_experts(values), moe / WEIGHTS, metadata={"format": "pt"})
    loaded = load_model(moe).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in values.items())


@pytest.mark.parametrize("form", ["gptq-desc-act", "awq"])
def test_matrices_stored_by_columns_are_read_in_bands(
    write: WriteForm, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of some columns, and file rows that pass through a chunk in several reads."""
    directory, values = write(form)
    monkeypatch.setattr(readers, "BAND_BYTES", 3000)
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1000)
    opened = open_checkpoint(str(directory))
    for name in filter(is_quantized, values):
        for start in range(0, len(values[name]), 24):
            rows = slice(start, min(start + 24, len(values[name])))
            assert torch.equal(opened.read(name, rows), values[name][rows]), (name, rows)


@pytest.mark.parametrize(
    ("form", "settings"), [("nf4", {"load_in_4bit": True}), ("int8-bitsandbytes", {"load_in_8bit": True})]
)
def test_older_files_of_bitsandbytes_do_not_say_so(
    form: str, settings: dict[str, bool], tmp_path: Path, write: WriteForm
) -> None:
    directory, values = write(form)
    copy = Path(shutil.copytree(directory, tmp_path / form))
    edit_settings(copy, lambda written: (written.clear(), written.update(settings)))
    assert torch.equal(open_checkpoint(str(copy)).read(f"{Q}.weight"), values[f"{Q}.weight"])
    assert torch.equal(restored_weights(copy, settings)[f"{Q}.weight"], values[f"{Q}.weight"])


def test_settings_of_the_text_model_count(tmp_path: Path, write: WriteForm) -> None:
    """As for transformers, which looks in both places."""
    directory = Path(shutil.copytree(write("awq")[0], tmp_path / "awq"))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    values = write("awq")[1]
    assert torch.equal(open_checkpoint(str(directory)).read(f"{Q}.weight"), values[f"{Q}.weight"])


@pytest.mark.parametrize("form", ["fp8", "awq"])
def test_the_reference_loads_restored_weights(write: WriteForm, form: str) -> None:
    directory, values = write(form)
    model = load_model(directory)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values.get(name, values["model.language_model.embed_tokens.weight"]).float()), name
    plain = load_model(TINY).generation_config
    assert model.generation_config.to_diff_dict() == plain.to_diff_dict()


def test_the_reference_loads_experts_in_float8(tmp_path: Path) -> None:
    """transformers 5.23 cannot; they are in the published layout."""
    values = write_quantized_checkpoint(tmp_path / "fp8", "fp8", write_moe_checkpoint(tmp_path / "moe"))
    loaded = load_model(tmp_path / "fp8").state_dict()
    for name, tensor in values.items():
        assert torch.equal(loaded[name], (tensor.transpose(1, 2) if ".experts." in name else tensor).float()), name
