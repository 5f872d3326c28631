"""LoRA adapters of quantized checkpoints: weights are restored in float32, and the sum is rounded nowhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.adapters import (
    PAIR,
    UNTIED,
    opened,
    write_adapter,
)
from parity_tests.fixtures.quantized_checkpoints import is_quantized, write_quantized_checkpoint
from parity_tests.harness.sides.pytorch.torch_model import load_model
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter.config import CONFIG

QUANTIZED = ["nf4-nested", "int8-bitsandbytes", "gptq-desc-act", "awq", "packed-asymmetric", "float8-rows"]


@pytest.fixture(scope="module")
def trained(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of linear layers, one of them in the tower, which is not quantized."""
    settings = {"target_modules": [*PAIR, "down_proj", "qkv"], "use_rslora": True}
    return write_adapter(tmp_path_factory.mktemp("trained"), bases[UNTIED], **settings)


@pytest.mark.parametrize("form", QUANTIZED)
def test_quantized_weights_are_restored_before_the_merge(
    form: str, bases: dict[str, Path], trained: Path, tmp_path: Path
) -> None:
    """In float32, which PEFT's merge into the restored weights is, to the last bit; other weights in their dtype."""
    write_quantized_checkpoint(tmp_path, form, bases[UNTIED])
    checkpoint, merged = opened(tmp_path, [trained]), load_model(tmp_path, [trained]).state_dict()
    for name, tensor in merged.items():
        assert torch.equal(checkpoint.read(name).float(), tensor), name
        assert checkpoint.tensors[name].dtype == (torch.float32 if is_quantized(name) else torch.bfloat16), name
    before = open_checkpoint(str(tmp_path))
    changed = {name for name in merged if not torch.equal(checkpoint.read(name), before.read(name))}
    assert len(changed) == 8  # q_proj, v_proj, down_proj and qkv of two layers
    forms_table.built(forms_table.ADAPTERS, f"of `{form}` weights", how="in float32")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_merge_computes_what_peft_computes_beside_quantized_weights(
    bases: dict[str, Path], trained: Path, tmp_path: Path
) -> None:
    """Training leaves the base quantized and the adapter beside it: its sum is rounded nowhere."""
    write_quantized_checkpoint(tmp_path, "nf4-nested", bases[UNTIED])
    checkpoint, restored = opened(tmp_path, [trained]), load_model(tmp_path)
    tokens = {"input_ids": torch.arange(12)[None], "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
    with torch.inference_mode():
        alone = restored(**tokens).logits
        beside = PeftModel.from_pretrained(restored, trained).eval()(**tokens).logits
        merged = load_model(tmp_path)
        merged.load_state_dict({name: checkpoint.read(name).float() for name in merged.state_dict()})
        torch.testing.assert_close(merged(**tokens).logits, beside, rtol=1e-5, atol=1e-6)
    assert (beside - alone).abs().max() > 1e-3


def test_an_adapter_finds_its_quantized_base(bases: dict[str, Path], trained: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", Path(shutil.copytree(trained, tmp_path / "adapter"))
    write_quantized_checkpoint(base, "nf4", bases[UNTIED])
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": str(base)}
    (adapter / CONFIG).write_text(json.dumps(config))
    by_name, by_base = open_checkpoint(str(adapter)), opened(base, [trained])
    assert all(torch.equal(by_name.read(name), by_base.read(name)) for name in by_base.tensors)
