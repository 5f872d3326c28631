"""Quantized checkpoints are read as their forms define them, whole and in strips of rows, on both sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.forms_table import QUANTIZED
from parity_tests.fixtures.moe_checkpoint import WEIGHTS, write_moe_checkpoint
from parity_tests.fixtures.paths import TINY
from parity_tests.fixtures.quantized_checkpoints import FORMS, WriteForm, is_quantized, write_quantized_checkpoint
from parity_tests.harness.sides.restored_weights import restored_weights
from parity_tests.harness.sides.torch_model import load_model
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.formats import awq, bitsandbytes, flat, readers
from qwen3vl_export.exporter.checkpoint.formats.readers import ScaledReader, SpreadReader, UnpackedReader
from qwen3vl_export.exporter.checkpoint.formats.settings import QuantizationConfig
from qwen3vl_export.exporter.checkpoint.tensors import Allocator, StoredReader, WrappedReader, allocate_anew
from qwen3vl_export.exporter.submodules import check_tensors


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


def split_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts in transformers' layout, one matrix each, as quantizing tools save them."""
    split = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name, tensor in tensors.items():
        module, _, stack = name.rpartition(".")
        for index, matrix in enumerate(tensor if ".experts." in name else ()):
            parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                split[f"{module}.{index}.{part}.weight"] = rows.contiguous()
    return split


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


def edit_settings(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config), "utf-8")


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


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


Q = "model.language_model.layers.0.self_attn.q_proj"
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
