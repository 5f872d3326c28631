"""The files that tensors are read from are those of transformers' `from_pretrained`, or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.checkpoint_forms import (
    INDEX,
    NORM,
    POSITIONS,
    SHARDS,
    WEIGHTS,
    Tensors,
    assert_as_transformers,
    edit_config,
    opened_and_checked,
    refusal,
    split,
    write,
    write_shards,
)
from parity_tests.fixtures.forms_table import FILES, QUANTIZED
from parity_tests.fixtures.paths import TINY
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.files import SETTINGS


def test_a_single_file_hides_an_index(tmp_path: Path, tiny: Tensors) -> None:
    write_shards(tmp_path, *split({name: tensor + 1 for name, tensor in tiny.items()}))
    opened, warnings = opened_and_checked(write(tmp_path, tiny))
    assert not warnings and torch.equal(opened.read(NORM), tiny[NORM])
    assert_as_transformers(opened)
    forms_table.built(FILES, "`model.safetensors` and an index", how="the single file; the index is not looked at")
    (tmp_path / INDEX).write_text("{")
    assert open_checkpoint(str(tmp_path)).tensors


def test_tensors_are_read_where_they_are_whatever_the_index_says(tmp_path: Path, tiny: Tensors) -> None:
    first, second, index = split(tiny)
    del index[NORM]
    index |= {POSITIONS: SHARDS[0], "model.nowhere": SHARDS[1]}
    opened, warnings = opened_and_checked(write_shards(tmp_path, first, second, index))
    assert not warnings
    assert_as_transformers(opened)
    forms_table.built(FILES, "an index that lacks a tensor, or names another shard", how="read from where it is")


def test_a_tensor_that_only_the_index_has_is_missing(tmp_path: Path, tiny: Tensors) -> None:
    first, second, index = split(tiny)
    del first[NORM]
    message = refusal(write_shards(tmp_path, first, second, index))
    assert f"tensor {NORM} [128] is missing" in message
    forms_table.refused(FILES, "a tensor that only the index has", message, tmp_path)


@pytest.mark.parametrize("shard", SHARDS)
def test_the_index_decides_between_two_shards(shard: str, tmp_path: Path, tiny: Tensors) -> None:
    first, second, index = split(tiny)
    stored = {SHARDS[0]: first, SHARDS[1]: second}
    for file, tensors in stored.items():
        tensors[NORM] = tiny[NORM] + (file != shard)
    opened, warnings = opened_and_checked(write_shards(tmp_path, first, second, index | {NORM: shard}))
    assert torch.equal(opened.read(NORM), tiny[NORM])
    if shard == SHARDS[1]:  # transformers takes the last one
        assert not warnings
        assert_as_transformers(opened)
    else:
        loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).state_dict()[NORM]
        assert torch.equal(loaded, tiny[NORM] + 1)
        (line,) = warnings
        assert NORM in line and SHARDS[0] in line and f"transformers loads {SHARDS[1]}" in line
        forms_table.built(FILES, "a tensor in two shards", tmp_path, warnings, "the shard that the index names")


def test_a_repeated_tensor_of_equal_values_is_no_warning(tmp_path: Path, tiny: Tensors) -> None:
    first, second, index = split(tiny)
    opened, warnings = opened_and_checked(write_shards(tmp_path, first, second | {NORM: tiny[NORM]}, index))
    assert not warnings
    assert_as_transformers(opened)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "a/../../x.safetensors", "/x.safetensors", "x\0.safetensors", "x" * 1000]
)
def test_a_shard_outside_the_directory_is_refused(name: str, tmp_path: Path, tiny: Tensors) -> None:
    root = tmp_path / "checkpoint"
    root.mkdir()
    write(root, tiny).joinpath(WEIGHTS).rename(tmp_path / "x.safetensors")
    (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tiny, name)}))
    message = refusal(root)
    assert f"/{INDEX}: names " in message and "no file inside the checkpoint's directory" in message
    if name == "../x.safetensors":
        forms_table.refused(FILES, "a shard outside the directory", message, root)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "vocab.json", INDEX])
def test_settings_that_are_links_to_files_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoint"
    shutil.copytree(TINY, root, ignore=shutil.ignore_patterns(name))
    secret = tmp_path / "secret"
    shutil.copyfile(TINY / "config.json", secret)
    (root / name).symlink_to(secret)
    message = refusal(root)
    assert f"{name}: is a link to a file outside the checkpoint's directory" in message
    forms_table.refused(FILES, f"`{name}` is a link to a file elsewhere", message, root)


def test_links_of_the_hubs_cache_and_to_weights_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--tiny"
    root = repository / "snapshots" / "0123abcd"
    root.mkdir(parents=True)
    shutil.copytree(TINY, repository / "blobs")
    for path in (repository / "blobs").iterdir():
        (root / path.name).symlink_to(Path("../../blobs") / path.name)
    opened, _ = opened_and_checked(root)
    assert opened.provenance()["files"] == open_checkpoint(str(TINY)).provenance()["files"]
    (root / WEIGHTS).unlink()
    (root / WEIGHTS).symlink_to(TINY / WEIGHTS)
    opened_and_checked(root)
    forms_table.built(FILES, "links of the Hub's cache, linked weights", how="followed")


@pytest.mark.parametrize("name", ["gone.safetensors", "."])
def test_a_shard_that_is_no_file_is_missing(name: str, tmp_path: Path, tiny: Tensors) -> None:
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tiny, name)}))
    assert "is missing" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model-q4.gguf", "Use the safetensors files"),
    ],
)
def test_other_formats_are_named_with_what_to_do(file: str, advice: str, tmp_path: Path) -> None:
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    (tmp_path / file).touch()
    message = refusal(tmp_path)
    assert f"{file} is in a format that is not read" in message and advice in message
    forms_table.refused(FILES, f"`{file}` alone", message, tmp_path)


@pytest.mark.parametrize("section", ["", "text_config", "vision_config"])
@pytest.mark.parametrize("value", [{"quant_method": "hqq"}, {}, "int4", 3, [1]])
def test_weights_quantized_by_another_method_are_refused(
    section: str, value: Any, tmp_path: Path, tiny: Tensors
) -> None:
    root = write(tmp_path, tiny)
    edit_config(root, lambda config: (config[section] if section else config).update(quantization_config=value))
    message = refusal(root)
    assert f"{section}{'.' if section else ''}quantization_config" in message
    assert (
        section == "vision_config" or repr(value.get("quant_method") if isinstance(value, dict) else value) in message
    )
    if value == {"quant_method": "hqq"}:
        forms_table.refused(QUANTIZED, f"hqq, {section or 'the top of config.json'}", message, root)


def test_weights_in_a_file_of_another_name_are_refused(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny)
    edit_config(root, lambda config: config.update(transformers_weights="other.safetensors"))
    message = refusal(root)
    assert "transformers_weights" in message
    forms_table.refused(FILES, "`transformers_weights` in config.json", message, root)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny)
    (root / "adapter_config.json").write_text("{}")
    message = refusal(root)
    assert "adapter_config.json" in message and "--adapter" in message
    forms_table.refused(FILES, "`adapter_config.json` beside weights", message, root)


def test_every_file_that_transformers_reads_is_part_of_the_identity(tmp_path: Path, tiny: Tensors) -> None:
    root = write_shards(tmp_path, *split(tiny))
    before = open_checkpoint(str(root)).provenance()["files"]
    assert set(before) == {"config.json", INDEX, *SHARDS}
    added = {name.replace("*", "tool_use") for name in SETTINGS} - {"config.json"}
    for name in added:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    assert set(open_checkpoint(str(root)).provenance()["files"]) == set(before) | added
