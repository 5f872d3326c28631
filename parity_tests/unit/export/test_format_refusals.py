"""Quantized checkpoints that cannot be read are refused in one line that names the setting or the part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.checkpoint_edits import edit_settings, edit_tensors
from parity_tests.fixtures.forms_table import QUANTIZED
from parity_tests.fixtures.quantized_checkpoints import WriteForm
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.submodules import check_tensors

from .test_formats import Q

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("fp8", {"quant_method": "hqq"}, r"quant_method is 'hqq', this tool reads fp8, compressed-tens"),
    ("fp8", {"quant_method": None}, r"quantization_config\.quant_method is None"),
    ("fp8", {"scale_fmt": "ue8m0"}, r"quantization_config\.scale_fmt is 'ue8m0', this tool reads 'float'"),
    ("fp8", {"fmt": "e5m2"}, r"fmt is 'e5m2'"),
    ("fp8", {"expert_dtype": "fp4"}, r"expert_dtype is 'fp4'"),
    ("fp8", {"weight_block_size": [128]}, r"weight_block_size is \[128\], two positive numbers are read"),
    ("packed", {"format": "nvfp4-pack-quantized"}, r"format is 'nvfp4-pack-quantized'"),
    ("packed", {"kv_cache_scheme": {"num_bits": 8}}, r"kv_cache_scheme is \{'num_bits': 8\}, this tool cannot read"),
    ("packed", {"transform_config": {"config_groups": {"R1": {}}}}, r"transform_config is "),
    ("packed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparsity_config\.format is 'sparse-24-bitmask'"),
    ("packed", {"quantization_status": "frozen"}, r"quantization_status is 'frozen'"),
    (
        "packed",
        {"config_groups": {"group_0": {"weights": {"num_bits": 3, "type": "int", "strategy": "group"}}}},
        r"quantization_config\.config_groups\.group_0\.weights\.num_bits is 3, this tool reads 4 and 8",
    ),
    ("gptq", {"bits": 2}, r"quantization_config\.bits is 2, this tool reads 4 and 8"),
    ("gptq", {"bits": 3}, r"quantization_config\.bits is 3, this tool reads 4 and 8"),
    ("gptq", {"checkpoint_format": "marlin"}, r"checkpoint_format is 'marlin', this tool reads 'gptq' and 'gptq_v2'"),
    ("gptq", {"dynamic": {"+:.*down_proj": {"bits": 8}}}, r"dynamic is .* this tool reads those that skip modules"),
    ("gptq", {"group_size": 0}, r"group_size is 0, a positive number, or -1 for a whole row, is read"),
    ("awq", {"version": "gemv"}, r"version is 'gemv', this tool reads 'gemm'"),
    ("awq", {"bits": 8}, r"bits is 8, this tool reads 4\."),
    ("nf4", {"bnb_4bit_quant_type": "af4"}, r"bnb_4bit_quant_type is 'af4', this tool reads 'nf4' and 'fp4'"),
    ("auto-round-gptq", {"packing_format": "auto_round:llm_compressor"}, r"packing_format is 'auto_round:llm_compres"),
    ("auto-round-gptq", {"data_type": "mx_fp"}, r"data_type is 'mx_fp', this tool reads 'int'"),
    ("auto-round-gptq", {"act_bits": 8}, r"act_bits is 8, this tool reads 16 and 32"),
    ("auto-round-gptq", {"rotation_config": {"hadamard_type": "hadamard"}}, r"rotation_config is "),
    ("auto-round-gptq", {"bits": 2}, r"bits is 2, this tool reads 4 and 8"),
    (
        "auto-round-awq",
        {"extra_config": {"model.language_model.layers.0.mlp.up_proj": {"bits": 8}}},
        r"extra_config\.model\.language_model\.layers\.0\.mlp\.up_proj\.bits is 8, this tool reads 4",
    ),
]


@pytest.mark.parametrize(("form", "settings", "message"), REFUSALS)
def test_a_setting_that_cannot_be_read_is_named(
    tmp_path: Path, write: WriteForm, form: str, settings: dict[str, Any], message: str
) -> None:
    directory = Path(shutil.copytree(write(form)[0], tmp_path / form))
    edit_settings(directory, lambda read: read.update(settings))
    with pytest.raises(CheckpointError, match=rf"^.*config\.json: .*{message}") as caught:
        assert open_checkpoint(str(directory)).tensors, settings
    assert str(caught.value).endswith("Use the checkpoint it was quantized from, or another quantized form of it")
    forms_table.refused(QUANTIZED, f"`{form}`: {shown(settings)}", str(caught.value), directory)


def shown(settings: dict[str, Any]) -> str:
    """The changed setting as the table of forms calls it; what a nested one says is in its line."""
    ((key, value),) = settings.items()
    return f"{key}: {'…' if isinstance(value, dict) else value}"


STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


def as_bytes(**state: Any) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


DAMAGE: list[tuple[str, Callable[[dict[str, Tensor]], object], str]] = [
    ("fp8", lambda t: t.pop(f"{Q}.weight_scale_inv"), rf"{Q}\.weight_scale_inv is missing"),
    ("fp8", lambda t: t.pop(f"{Q}.weight"), rf"{Q}\.weight is missing"),
    ("fp8", lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].half()}), rf"{Q}\.weight is torch\.float16, with scal"),
    (
        "fp8",
        lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(2, 2)}),
        rf"{Q}\.weight_scale_inv is \[2, 2\], which are not blocks of 64 x 64 of \[192, 128\]",
    ),
    ("packed", lambda t: t.pop(f"{Q}.weight_scale"), rf"{Q}\.weight_scale is missing"),
    ("packed", lambda t: t.pop(f"{Q}.weight_shape"), rf"{Q}\.weight_shape is missing"),
    ("packed", lambda t: t.update({f"{Q}.weight_shape": torch.tensor([192, 100])}), "which are not 4 or 8 bits of"),
    ("packed", lambda t: t.update({f"{Q}.weight_scale": torch.ones(192, 3)}), r"weight_scale is \[192, 3\]"),
    ("gptq", lambda t: t.pop(f"{Q}.qweight"), rf"{Q}\.qweight is missing"),
    ("gptq", lambda t: t.pop(f"{Q}.qzeros"), rf"{Q}\.qzeros is missing"),
    ("gptq", lambda t: t.update({f"{Q}.g_idx": torch.full((128,), 4)}), r"q_proj\.g_idx names groups 4 to 4 of 4"),
    ("gptq-desc-act", lambda t: t.pop(f"{Q}.g_idx"), rf"{Q}\.g_idx is missing"),
    ("awq", lambda t: t.pop(f"{Q}.scales"), rf"{Q}\.scales is missing"),
    ("awq", lambda t: t.update({f"{Q}.qzeros": torch.ones(2, 5)}), r"q_proj\.qzeros is \[2, 5\], not \[2, 24\]"),
    (
        "awq",
        lambda t: t.update({f"{Q}.qweight": torch.ones(128, 5)}),
        r"q_proj\.qweight is \[128, 5\], not \[128, 24\]",
    ),
    ("nf4", lambda t: t.pop(f"{Q}.weight"), rf"{Q}\.weight is missing"),
    ("nf4", lambda t: t.pop(f"{Q}.weight.absmax"), rf"{Q}\.weight\.absmax is missing"),
    ("nf4", lambda t: t.pop(STATE), r"q_proj\.weight\.quant_state\.bitsandbytes__nf4 is missing"),
    ("nf4", lambda t: t.update({STATE: t[STATE][:9]}), r"quant_state\.bitsandbytes__nf4 is not a JSON object"),
    ("nf4", lambda t: t.update({STATE: as_bytes(blocksize=64)}), r"bitsandbytes__nf4\.shape is None, two positive num"),
    (
        "nf4",
        lambda t: t.update({STATE: as_bytes(shape=[192, 64], dtype="bfloat16", blocksize=64)}),
        r"q_proj\.weight has 12288 bytes, which are not 4 bits of \[192, 64\]",
    ),
    (
        "nf4",
        lambda t: t.update({STATE: as_bytes(shape=[192, 128], dtype="int8", blocksize=64)}),
        r"bitsandbytes__nf4\.dtype is 'int8', this tool reads 'bfloat16' and",
    ),
    (
        "nf4",
        lambda t: t.update({STATE: as_bytes(shape=[192, 128], dtype="float32", blocksize=0)}),
        r"bitsandbytes__nf4\.blocksize is 0, a positive number is read",
    ),
    (
        "nf4-nested",
        lambda t: t.update({STATE: as_bytes(shape=[192, 128], dtype="float32", blocksize=64, nested_blocksize=256)}),
        r"bitsandbytes__nf4\.nested_offset is None, a number is read",
    ),
    (
        "nf4",
        lambda t: t.update({f"{Q}.weight.absmax": torch.ones(383)}),
        r"q_proj\.weight\.absmax is \[383, 1\], which are not blocks of 64 x 1 of \[24576, 1\]",
    ),
    ("nf4-nested", lambda t: t.pop(f"{Q}.weight.nested_absmax"), rf"{Q}\.weight\.nested_absmax is missing"),
    ("nf4-nested", lambda t: t.pop(f"{Q}.weight.nested_quant_map"), rf"{Q}\.weight\.nested_quant_map is missing"),
    ("int8-bitsandbytes", lambda t: t.pop(f"{Q}.weight"), rf"{Q}\.weight is missing"),
    (
        "int8-bitsandbytes",
        lambda t: t.update({f"{Q}.weight": torch.ones(192, 128)}),
        r"is torch\.float32, with \.SCB it",
    ),
    ("int8-bitsandbytes", lambda t: t.update({f"{Q}.SCB": torch.ones(19)}), r"q_proj\.SCB is \[19, 1\], which are not"),
    (
        "int8-bitsandbytes",
        lambda t: t.update({f"{Q}.weight_format": torch.tensor(2, dtype=torch.uint8)}),
        r"q_proj\.weight_format is 2, this tool reads 0, rows",
    ),
]


@pytest.mark.parametrize(("form", "damage", "message"), DAMAGE)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, write: WriteForm, form: str, damage: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    directory = Path(shutil.copytree(write(form)[0], tmp_path / form))
    edit_tensors(directory, damage)
    with pytest.raises(CheckpointError, match=message):
        assert open_checkpoint(str(directory)).tensors


def test_codes_without_settings_are_refused(tmp_path: Path, write: WriteForm) -> None:
    directory = Path(shutil.copytree(write("gptq")[0], tmp_path / "gptq"))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CheckpointError, match=r"tensor .*_proj\.weight \[\d+, \d+\] is missing"):
        check_tensors(open_checkpoint(str(directory)), torch.float32)
