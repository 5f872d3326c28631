"""How LoRA adapters are found and read: older names, repositories, their base; what cannot be merged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.adapters import (
    PAIR,
    TIED,
    differences,
    opened,
    write_adapter,
)
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter import checkpoint as checkpoints
from qwen3vl_export.exporter.checkpoint import adapter as adapters
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import WEIGHTS, open_adapter
from qwen3vl_export.exporter.checkpoint.adapter.config import CONFIG
from qwen3vl_export.exporter.checkpoint.names import HEAD

OLDER_NAMES: dict[str, Callable[[str], str]] = {
    "without the prefix": lambda key: key.removeprefix("base_model.model."),
    "without language_model": lambda key: key.replace("model.language_model.", "model."),
    "without model": lambda key: key.replace("base_model.model.model.", "base_model.model."),
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("form", OLDER_NAMES)
def test_older_names_are_read(form: str, bases: dict[str, Path], plain_adapter: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "older"))
    renamed = {OLDER_NAMES[form](key): tensor for key, tensor in load_file(plain_adapter / WEIGHTS).items()}
    assert renamed.keys().isdisjoint(load_file(plain_adapter / WEIGHTS))
    save_file(renamed, adapter / WEIGHTS)
    assert differences(bases[TIED], [adapter]) == []
    new, old = opened(bases[TIED], [plain_adapter]), opened(bases[TIED], [adapter])
    assert all(torch.equal(new.read(name), old.read(name)) for name in new.tensors)
    forms_table.built(forms_table.ADAPTERS, f"names: {form}")


def test_whole_modules_are_read_under_their_older_name(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", bases[TIED], target_modules=PAIR, modules_to_save=["lm_head"])
    tensors = load_file(adapter / WEIGHTS)
    head = tensors.pop(f"base_model.model.{HEAD}")
    save_file({**tensors, "base_model.model.lm_head.modules_to_save.default.weight": head}, adapter / WEIGHTS)
    assert differences(bases[TIED], [adapter]) == []
    assert torch.equal(opened(bases[TIED], [adapter]).read(HEAD), head)


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[dict[str, Any], Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "another method": ({"peft_type": "VERA"}, lambda _: None, "peft_type is 'VERA'"),
    "DoRA": ({"use_dora": True}, lambda _: None, "use_dora is set"),
    "a setting of the future": ({"use_newra": {"x": 1}}, lambda _: None, "use_newra is set"),
    "replicated layers": ({"layer_replication": [[0, 1]]}, lambda _: None, "layer_replication is set"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, lambda _: None, "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": ({"init_lora_weights": "olora"}, lambda _: None, "init_lora_weights is 'olora'"),
    "a rank of zero": ({"r": 0}, lambda _: None, "a rank is not a positive number"),
    "a broken expression": ({"target_modules": "(q_proj"}, lambda _: None, "is not a regular expression"),
    "another rank": ({"r": 8}, lambda _: None, "q_proj.lora_A.weight is [4, 32]"),
    "a rank pattern": ({"rank_pattern": {"q_proj": 5}}, lambda _: None, "q_proj.lora_A.weight is [4, 32]"),
    "a target without tensors": ({"target_modules": [*PAIR, "o_proj"]}, lambda _: None, "has no lora_A for model.lang"),
    "a norm": (
        {"target_modules": [*PAIR, "norm"]},
        lambda _: None,
        "neither a linear layer nor a convolution nor a table",
    ),
    "half a target": ({}, lambda t: t.pop(f"{Q}.lora_B.weight"), "has no lora_B for model.language_model.layers.0"),
    "a saved module without tensors": ({"modules_to_save": ["lm_head"]}, lambda _: None, "has no weight for lm_head"),
    "tensors without a target": ({"target_modules": ["q_proj"]}, lambda _: None, "names no target for tensor"),
    "a layer too many": (
        {},
        lambda t: t.update({Q.replace("layers.0", "layers.9") + ".lora_A.weight": torch.ones(4, 32)}),
        "layers.9.self_attn.q_proj.lora_A.weight belongs to no module",
    ),
    "an unknown part": ({}, lambda t: t.update({f"{Q}.lora_C.weight": torch.ones(4)}), "belongs to no module"),
    "a bias that the model lacks": (
        {},
        lambda t: t.update({f"{Q}.bias": torch.ones(32)}),
        "names no target for tensor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(
    case: str, bases: dict[str, Path], plain_adapter: Path, tmp_path: Path
) -> None:
    settings, change, message = REFUSED[case]
    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "adapter"))
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | settings))
    with pytest.raises(CheckpointError) as error:
        _ = opened(bases[TIED], [adapter]).tensors
    assert message in str(error.value) and error.value.next
    forms_table.refused(forms_table.ADAPTERS, case, str(error.value), adapter)


def test_adapters_saved_by_pickle_are_refused(plain_adapter: Path, tmp_path: Path) -> None:
    shutil.copyfile(plain_adapter / CONFIG, tmp_path / CONFIG)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing") as error:
        open_adapter(str(tmp_path))
    assert "save_pretrained" in error.value.next
    forms_table.refused(forms_table.ADAPTERS, "`adapter_model.bin`", str(error.value), tmp_path)


def test_an_adapter_is_a_directory_or_a_repository(
    plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(source: str, revision: str, *_: object, **__: object) -> tuple[Path, str]:
        asked.append((source, revision))
        return plain_adapter, "c" * 40

    monkeypatch.setattr(adapters, "download", download)
    shutil.copytree(plain_adapter, tmp_path / "runs" / "lora")
    monkeypatch.chdir(tmp_path)
    assert (open_adapter("runs/lora").source, open_adapter("runs/lora", "./x").source) == ("lora", "./x")
    assert asked == []
    opened = [open_adapter(name) for name in ("org/lora", "org/lora@v2", "hf://runs/lora@v2")]
    assert asked == [("org/lora", "main"), ("org/lora", "v2"), ("runs/lora", "v2")]
    assert {(adapter.source, adapter.revision) for adapter in opened} == {
        ("org/lora", "c" * 40),
        ("runs/lora", "c" * 40),
    }
    with pytest.raises(CheckpointError, match=r"runs/lorra: no such adapter directory. Did you mean runs/lora\?"):
        open_adapter("runs/lorra")
    with pytest.raises(CheckpointError, match="is not the name of a repository"):
        open_adapter("hf://no such name")


def test_the_base_of_an_adapter_can_be_a_repository(
    bases: dict[str, Path], plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(source: str, revision: str, *_: object) -> tuple[Path, str]:
        asked.append((source, revision))
        return (adapter if source == "me/lora" else bases[TIED]), "c" * 40

    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "adapter"))
    settings = {"base_model_name_or_path": "org/base", "revision": "v3"}
    (adapter / CONFIG).write_text(json.dumps(json.loads((adapter / CONFIG).read_text()) | settings))
    monkeypatch.setattr(checkpoints, "download", download)
    record = open_checkpoint("me/lora", "v1").provenance()
    assert asked == [("me/lora", "v1"), ("org/base", "v3")]
    assert (record["source"], record["adapters"][0]["source"]) == ("org/base", "me/lora")


def test_an_adapter_that_is_there_in_name_only_is_refused(plain_adapter: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "adapter"))
    (adapter / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer"):
        open_adapter(str(adapter))


def test_an_adapter_as_the_checkpoint_finds_its_base(
    bases: dict[str, Path], plain_adapter: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "runs" / "adapter"))
    shutil.copytree(bases[TIED], tmp_path / "base")
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": "../../base"}
    (adapter / CONFIG).write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(adapter))
    expected = opened(bases[TIED], [plain_adapter])
    assert all(torch.equal(checkpoint.read(name), expected.read(name)) for name in expected.tensors)
    record = checkpoint.provenance()
    assert (record["source"], record["adapters"][0]["source"]) == ("base", "adapter")
    assert set(record["adapters"][0]["files"]) == {CONFIG, WEIGHTS}
    assert set(checkpoint.files) >= {adapter / CONFIG, adapter / WEIGHTS}
    forms_table.built(forms_table.ADAPTERS, "an adapter in place of the checkpoint", how="its base is found")


@pytest.mark.parametrize("base", ["../gone", "", "."])
def test_a_base_that_cannot_be_found_is_an_error(base: str, plain_adapter: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain_adapter, tmp_path / "adapter"))
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": base}
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(str(adapter))
    assert "--adapter" in error.value.next


def test_adapters_that_name_each_other_as_their_base_are_an_error(plain_adapter: Path, tmp_path: Path) -> None:
    for name, base in (("one", "../two"), ("two", "../one")):
        adapter = Path(shutil.copytree(plain_adapter, tmp_path / name))
        config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": base}
        (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"one: adapters that name each other as their base\. Pass --checkpoint"):
        open_checkpoint(str(tmp_path / "one"))
