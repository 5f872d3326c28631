"""Tensors under every name that transformers reads are read; other names, stacks and layers are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.checkpoint_forms import (
    NORM,
    POSITIONS,
    WEIGHTS,
    Tensors,
    assert_as_transformers,
    changed,
    edit_config,
    opened_and_checked,
    refusal,
    split,
    write,
)
from parity_tests.fixtures.forms_table import NAMES
from parity_tests.fixtures.moe_checkpoint import EXPERTS, split_experts, write_moe_checkpoint
from qwen3vl_export.exporter import submodules
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import HEAD, TABLE
from qwen3vl_export.exporter.skeletons import needs_tower
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.quantize import Int4

READ_NAMES: dict[str, Callable[[str], str]] = {
    "without model.": lambda name: name.removeprefix("model."),
    "model. twice": lambda name: f"model.{name}",
    "model.language_model.model.": lambda name: name.replace("language_model.", "language_model.model."),
    "language_model.model.model.": lambda name: name.replace("model.language_model.", "language_model.model.model."),
}


@pytest.mark.parametrize("form", READ_NAMES)
def test_names_that_transformers_renames_are_read(form: str, tmp_path: Path, tiny: Tensors) -> None:
    tensors = tiny | {HEAD: changed(tiny[TABLE], 7.0)}
    renamed = {name if name == HEAD else READ_NAMES[form](name): tensor for name, tensor in tensors.items()}
    opened, _ = opened_and_checked(write(tmp_path, renamed))
    assert set(opened.tensors) == set(tensors)
    assert_as_transformers(opened)
    forms_table.built(NAMES, form, how="renamed, by transformers' own table")


def test_a_mixtures_renamed_experts_are_read(tmp_path: Path) -> None:
    root = write_moe_checkpoint(tmp_path)
    write(root, {name.removeprefix("model."): tensor for name, tensor in load_file(root / WEIGHTS).items()})
    opened, _ = opened_and_checked(root)
    assert_as_transformers(opened)


OTHER_NAMES: dict[str, tuple[Callable[[str], str], str]] = {
    "base_model.model. of PEFT": (
        lambda name: f"base_model.model.{name}",
        "base_model.model.model. where transformers reads model.",
    ),
    "module. of DataParallel": (lambda name: f"module.{name}", "module.model. where transformers reads model."),
    "model.layers. without language_model": (
        lambda name: name.replace("model.language_model.", "model."),
        "model. where transformers reads model.language_model.",
    ),
    "visual. and model.layers., Qwen2-VL of transformers 4": (
        lambda name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model."),
        "model. where transformers reads model.language_model.",
    ),
    "another name of the tower": (lambda name: name.replace("visual", "vision_tower"), "model.vision_tower."),
}


@pytest.mark.parametrize("form", OTHER_NAMES)
def test_names_that_transformers_does_not_know_are_refused_by_their_prefix(
    form: str, tmp_path: Path, tiny: Tensors
) -> None:
    rename, expected = OTHER_NAMES[form]
    root = write(tmp_path, {rename(name): tensor for name, tensor in tiny.items()})
    message = refusal(root)
    assert expected in message
    forms_table.refused(NAMES, form, message, root)
    _, info = Qwen3VLForConditionalGeneration.from_pretrained(root, output_loading_info=True)
    assert info["missing_keys"] and info["unexpected_keys"]


def test_a_tensor_under_two_names_is_refused(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {POSITIONS.removeprefix("model."): tiny[POSITIONS] + 1})
    message = refusal(root)
    assert f"tensors {POSITIONS} and visual.pos_embed.weight are both {POSITIONS}" in message
    forms_table.refused(NAMES, "one tensor under two names", message, root)


def test_tensors_that_transformers_leaves_out_are_named(tmp_path: Path, tiny: Tensors) -> None:
    extra = {
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "model.visual.position_ids": torch.ones(3, dtype=torch.int64),
        "v_head.summary.weight": torch.ones(1, 128),
        "zz": torch.ones(1),
        "zzz": torch.ones(1),
    }
    opened, warnings = opened_and_checked(write(tmp_path, tiny | extra))
    (line,) = warnings
    assert all(name in line for name in sorted(extra)[:3]) and "and 2 more" in line
    assert_as_transformers(opened)
    forms_table.built(NAMES, "tensors of no module", tmp_path, warnings)


def test_a_weight_of_integers_is_refused(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {NORM: torch.ones(128, dtype=torch.int8)})
    message = refusal(root)
    assert f"tensor {NORM} has dtype torch.int8" in message
    forms_table.refused(NAMES, "integer weights without settings", message, root)


def test_without_the_tower_text_graphs_can_be_built(tmp_path: Path, tiny: Tensors) -> None:
    text, _, _ = split(tiny)
    root = write(tmp_path, text)
    opened, warnings = opened_and_checked(root, tower=False)
    assert not warnings
    assert_as_transformers(opened, prefix="model.language_model.")
    message = refusal(root)
    assert "has no vision tower" in message and "graphs: [embed_tokens, decoder_model_merged]" in message
    forms_table.built(NAMES, "no vision tower, text graphs alone")
    forms_table.refused(NAMES, "no vision tower, all graphs", message, root)


def test_only_the_encoder_and_calibration_need_the_tower() -> None:
    recipe = load_recipe("tiny")
    assert needs_tower(recipe)
    text = recipe.model_copy(update={"graphs": ("embed_tokens", "decoder_model_merged")})
    assert not needs_tower(text)
    decoder = Int4(method="int4", algorithm="gptq")
    calibrated = text.quantization.model_copy(update={"decoder_model_merged": decoder})
    assert needs_tower(text.model_copy(update={"quantization": calibrated}))


def test_experts_of_one_tensor_each_are_stacked(tmp_path: Path) -> None:
    stacked = open_checkpoint(str(write_moe_checkpoint(tmp_path / "stacked", "modules")))
    root = Path(shutil.copytree(stacked.root, tmp_path / "single"))
    tensors = split_experts(load_file(root / WEIGHTS))
    opened, warnings = opened_and_checked(write(root, tensors))
    assert not warnings and set(opened.tensors) == set(stacked.tensors)
    model = assert_as_transformers(stacked)
    for name, expected in model.state_dict().items():
        assert torch.equal(opened.read(name), expected), name
        if ".mlp.experts." in name:
            assert torch.equal(opened.read(name, slice(2, 5)), expected[2:5])
    forms_table.built(NAMES, "experts of one tensor each", how="stacked while they are read")
    name = "model.language_model.layers.0.mlp.experts.5.up_proj.weight"
    write(root, {key: tensor for key, tensor in tensors.items() if key != name})
    assert f"tensor {name} is missing beside the other experts" in refusal(root)
    write(root, tensors | {name: tensors[name][:3]})
    assert f"tensor {name} is [3, 128], that of expert 0 is [256, 128]" in refusal(root)
    write(root, {key: tensor for key, tensor in tensors.items() if f".experts.{EXPERTS - 1}." not in key})
    assert f"is [{EXPERTS - 1}, 512, 128], config.json asks for [{EXPERTS}, 512, 128]" in refusal(root)


@pytest.mark.parametrize(("section", "key"), [("text_config", "num_hidden_layers"), ("vision_config", "depth")])
@pytest.mark.parametrize("count", [5, 1000])
def test_layers_that_are_not_stored_are_counted_before_a_module_is_made(
    section: str, key: str, count: int, tmp_path: Path, tiny: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object) -> None:
        raise AssertionError("a module was made")

    monkeypatch.setattr(submodules, "build_submodule", build)
    root = write(tmp_path, tiny)
    edit_config(root, lambda config: config[section].update({key: count}))
    message = refusal(root)
    assert ".4.… are missing" in message and f"config.json asks for {count} layers" in message
    forms_table.refused(NAMES, f"{count} layers of `{section}` in config.json, 4 in the files", message, root)
