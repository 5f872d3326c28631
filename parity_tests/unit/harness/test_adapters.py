"""Artifacts with LoRA adapters: `verify` finds the adapters again, refuses others, and asks PyTorch and PEFT."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from parity_tests.fixtures.adapters import MIXTURE, TIED, UNTIED, write_adapter, write_base
from parity_tests.fixtures.paths import TINY
from parity_tests.fixtures.quantized_checkpoints import write_quantized_checkpoint
from parity_tests.harness import verify as harness
from parity_tests.harness.options import Options
from parity_tests.harness.sides.artifact.foreign import open_foreign
from parity_tests.harness.sides.pytorch.adapters import copy_with_current_names
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import recorded_files, scope_of
from parity_tests.harness.sides.pytorch.torch_model import load_model, stream_model
from parity_tests.harness.sides.recorded import find_checkpoint
from qwen3vl_export.errors import CheckpointError, ParityError
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import WEIGHTS, open_adapter
from qwen3vl_export.exporter.checkpoint.adapter.config import CONFIG
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.manifest import MANIFEST
from qwen3vl_export.recipe import load_recipe

INSTALL = r"peft, .* is not installed\. Install it: pip install 'qwen3vl-export\[lora\]'"
SETTINGS = {"target_modules": ["q_proj", "down_proj", "qkv"], "modules_to_save": ["lm_head"], "use_rslora": True}
PAIR = ["q_proj", "v_proj"]
STREAMED: dict[str, tuple[str, dict[str, Any]]] = {  # what PEFT wraps in a way of its own
    "products and biases": (UNTIED, {"target_modules": ["q_proj", "qkv"], "bias": "all", "use_rslora": True}),
    "experts": (MIXTURE, {"target_modules": PAIR, "target_parameters": ["mlp.experts.down_proj", "gate.weight"]}),
    "whole modules": (UNTIED, {"target_modules": PAIR, "modules_to_save": ["merger", "lm_head"]}),
    "tied table": (
        TIED,
        {"target_modules": PAIR, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "table that is untied": (TIED, {"target_modules": ["embed_tokens", "patch_embed.proj"]}),
    "tokens": (TIED, {"target_modules": PAIR, "trainable_token_indices": [3, 90]}),
    "quantized weights": (UNTIED, {"target_modules": [*PAIR, "qkv"]}),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the tiny checkpoint. Shared: copy them before changing them."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / str(seed), TINY, seed, **SETTINGS) for seed in range(2)]


def built_with(adapters: list[Path]) -> Any:
    """What `find_checkpoint` asks of an artifact that was built with adapters."""
    opened = open_checkpoint(str(TINY)).adapted([open_adapter(str(adapter)) for adapter in adapters])
    return SimpleNamespace(manifest=SimpleNamespace(checkpoint=opened.provenance()))


def test_the_same_adapters_are_accepted(adapters: list[Path]) -> None:
    paths = [str(adapter) for adapter in adapters]
    checkpoint = find_checkpoint(built_with(adapters), TINY, paths)
    assert [adapter.root for adapter in checkpoint.adapters] == adapters


def test_an_adapter_given_as_the_checkpoint_is_accepted(adapters: list[Path]) -> None:
    """It names its base."""
    checkpoint = find_checkpoint(built_with(adapters[:1]), adapters[0])
    assert [adapter.root for adapter in checkpoint.adapters] == adapters[:1]
    with pytest.raises(CheckpointError, match=r"^1: no such adapter beside"):  # the first one is given
        find_checkpoint(built_with(adapters), adapters[0])


def test_adapters_in_another_order_are_refused(adapters: list[Path]) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is not the one .* pass --adapter DIR"):
        find_checkpoint(built_with(adapters), TINY, [str(adapter) for adapter in reversed(adapters)])


def test_changed_settings_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(adapters[0], tmp_path / "changed"))
    settings = json.loads((changed / CONFIG).read_text("utf-8"))
    (changed / CONFIG).write_text(json.dumps(settings | {"lora_alpha": 13}), "utf-8")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not the one"):
        find_checkpoint(built_with(adapters[:1]), TINY, [str(changed)])


def test_adapters_that_cannot_be_found_are_asked_for(adapters: list[Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"0: no such adapter beside the recipes or in the current directory\. Pass --adapter DIR"
    ):
        find_checkpoint(built_with(adapters[:1]), TINY)


def test_another_number_of_adapters_is_refused(adapters: list[Path]) -> None:
    with pytest.raises(CheckpointError, match="1 adapters, this artifact was built with 2"):
        find_checkpoint(built_with(adapters), TINY, [str(adapters[0])])


def test_a_package_of_another_exporter_takes_adapters_too(adapters: list[Path], tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").touch()
    contract = tmp_path / "contract.yaml"
    contract.write_text("name: a/b\ntolerances: float32\ngraphs: {decoder_model_merged: {file: decoder.onnx}}\n")
    opened, checkpoint = open_foreign(contract, TINY, [str(adapter) for adapter in adapters])
    assert [adapter.root for adapter in checkpoint.adapters] == adapters
    assert opened.manifest.checkpoint == built_with(adapters).manifest.checkpoint


def test_results_are_stored_by_checkpoint_and_adapters(adapters: list[Path]) -> None:
    orders = [[], adapters[:1], adapters, adapters[::-1]]
    scopes = {scope_of(recorded_files(built_with(order).manifest.checkpoint)) for order in orders}
    assert len(scopes) == len(orders)


def test_peft_is_asked_for(adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ParityError, match=INSTALL):
        load_model(TINY, adapters[:1])


@pytest.mark.usefixtures("share_traces")
def test_an_artifact_with_an_adapter_is_that_of_pytorch_with_peft(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faithful build passes; beside an adapter of another alpha it fails."""
    monkeypatch.chdir(adapters[0].parent)
    artifact = build(load_recipe("tiny"), adapters=[str(adapters[0])], out=tmp_path / "tiny", log=lambda line: None)
    record = json.loads((artifact / MANIFEST).read_text("utf-8"))["checkpoint"]
    assert [adapter["source"] for adapter in record["adapters"]] == ["0"]
    cases = ["vision[grid-2x2]", "text-only"]
    assert harness.verify(artifact, Options(cases=cases)) == 0
    with monkeypatch.context() as patch, pytest.raises(ParityError, match=INSTALL):
        patch.setitem(sys.modules, "peft", None)
        harness.verify(artifact, Options(cases=cases))
    other = Path(shutil.copytree(adapters[0], tmp_path / "other"))
    settings = json.loads((other / CONFIG).read_text("utf-8"))
    (other / CONFIG).write_text(json.dumps(settings | {"lora_alpha": 13}), "utf-8")
    bench = harness.open_bench(artifact, reference=Reference(TINY, adapters=[other]))
    assert {"vision", "decoder"} <= {outcome.stage for outcome in harness.run(bench, cases=cases).failures}


@pytest.mark.parametrize("kind", STREAMED)
def test_a_module_at_a_time_peft_merges_what_it_merges_into_the_whole_model(kind: str, tmp_path: Path) -> None:
    """Two adapters, one after the other, bit for bit: the second sees what the first made of table and head."""
    base, settings = write_base(tmp_path / "base", STREAMED[kind][0]), STREAMED[kind][1]
    pair = [write_adapter(tmp_path / str(seed), base, seed, **settings) for seed in range(2)]
    if kind == "quantized weights":
        base = tmp_path / kind
        write_quantized_checkpoint(base, "nf4", tmp_path / "base")
    plain, whole, streamed = load_model(base), load_model(base, pair), stream_model(base, pair)
    names = [name for name, _ in whole.named_parameters(remove_duplicate=False)]
    assert [name for name in names if not torch.equal(streamed.parameter(name), whole.get_parameter(name))] == []
    assert any(not torch.equal(plain.get_parameter(name), whole.get_parameter(name)) for name in names)


def test_no_more_of_an_adapter_is_read_than_what_is_merged(adapters: list[Path], tmp_path: Path) -> None:
    modules = dict(load_model(TINY).named_modules())
    layer = "model.language_model.layers.1"
    assert copy_with_current_names(adapters[0], tmp_path, modules, lambda name: name.startswith(layer))
    stored, copied = (load_file(directory / WEIGHTS) for directory in (adapters[0], tmp_path))
    assert copied.keys() == stored.keys()
    for name, tensor in copied.items():
        assert torch.equal(tensor, stored[name]) if layer in name else not tensor.any(), name
    assert not copy_with_current_names(adapters[0], tmp_path, modules, lambda name: False)
