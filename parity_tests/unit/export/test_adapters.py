"""LoRA adapters: the weights a build reads are those that PEFT merges, tensor by tensor, for every kind of adapter."""

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
    MIXTURE,
    PAIR,
    TIED,
    UNTIED,
    differences,
    opened,
    write_adapter,
    write_base,
)
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.adapter import WEIGHTS
from qwen3vl_export.exporter.checkpoint.adapter.config import AdapterConfig
from qwen3vl_export.exporter.checkpoint.adapter.readers import MatrixDelta
from qwen3vl_export.exporter.checkpoint.files import SINGLE
from qwen3vl_export.exporter.checkpoint.names import HEAD, TABLE

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder and tower": (TIED, {"target_modules": ["q_proj", "down_proj", "qkv", "linear_fc2"]}),
    "all-linear": (UNTIED, {"target_modules": "all-linear"}),
    "all-linear of a mixture": (MIXTURE, {"target_modules": "all-linear"}),
    "regular expression": (TIED, {"target_modules": r"^model\.language_model(?=\.).*\.(o_proj|up_proj)$"}),
    "excluded modules": (TIED, {"target_modules": PAIR, "exclude_modules": r".*layers\.0.*q_proj"}),
    "chosen layers": (TIED, {"target_modules": PAIR, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "convolution and positions": (TIED, {"target_modules": ["patch_embed.proj", "pos_embed"]}),
    "patterns": (
        TIED,
        {
            "target_modules": ["q_proj", "k_proj", "v_proj"],
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "proj": 7, "v_proj": 8},
            "alpha_pattern": {"k_proj": 5, "layers.0.self_attn.v_proj": 1},
        },
    ),
    "rslora": (TIED, {"target_modules": PAIR, "use_rslora": True, "rank_pattern": {"v_proj": 8}}),
    "fan_in_fan_out": (TIED, {"target_modules": ["gate_proj"], "fan_in_fan_out": True}),
    "every bias": (TIED, {"target_modules": ["qkv"], "bias": "all"}),
    "targets' biases": (TIED, {"target_modules": ["qkv"], "bias": "lora_only"}),
    "bias of B": (TIED, {"target_modules": ["qkv", "linear_fc1"], "lora_bias": True}),
    "whole modules": (UNTIED, {"target_modules": PAIR, "modules_to_save": ["merger", "lm_head"]}),
    "whole norms": (UNTIED, {"target_modules": PAIR, "modules_to_save": ["norm"]}),
    "table of its own": (TIED, {"target_modules": PAIR, "modules_to_save": ["embed_tokens"]}),
    "head of its own": (TIED, {"target_modules": PAIR, "modules_to_save": ["lm_head"]}),
    "table and head": (TIED, {"target_modules": PAIR, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "table that stays tied": (
        TIED,
        {"target_modules": PAIR, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "adapted table": (TIED, {"target_modules": ["embed_tokens"]}),
    "adapted head": (TIED, {"target_modules": ["lm_head"]}),
    "adapted table and head": (UNTIED, {"target_modules": ["embed_tokens", "lm_head"]}),
    "adapted table that stays tied": (TIED, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "tokens": (TIED, {"target_modules": PAIR, "trainable_token_indices": [3, 90]}),
    "tokens of table and head": (
        UNTIED,
        {"target_modules": PAIR, "trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [5]}},
    ),
    "experts": (
        MIXTURE,
        {
            "target_modules": PAIR,
            "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
            "rank_pattern": {"experts.down_proj": 2},
            "alpha_pattern": {r"0\.mlp\.experts\.gate_up_proj": 3},
        },
    ),
    "one expert matrix and the router": (
        MIXTURE,
        {"target_modules": [], "target_parameters": ["experts.down_proj", "gate.weight"]},
    ),
    "a parameter of a linear layer": (TIED, {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "another initialization": (TIED, {"target_modules": PAIR, "init_lora_weights": "orthogonal"}),
}
UNTIES = {"adapted table", "adapted head", "table of its own", "head of its own", "table and head"} | {
    "adapted table that stays tied"
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_those_of_peft(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base, settings = bases[KINDS[kind][0]], KINDS[kind][1]
    adapter = write_adapter(tmp_path / "adapter", base, **settings)
    assert differences(base, [adapter]) == []
    checkpoint, before = opened(base, [adapter]), open_checkpoint(str(base))
    changed = [name for name in before.tensors if not torch.equal(checkpoint.read(name), before.read(name))]
    assert changed or checkpoint.tied != before.tied
    assert checkpoint.tied == (KINDS[kind][0] == TIED and kind not in UNTIES)
    assert {reader.dtype for reader in checkpoint.tensors.values()} == {torch.bfloat16}
    forms_table.built(forms_table.ADAPTERS, kind)


@pytest.mark.parametrize("kind", ["decoder and tower", "adapted table", "tokens", "experts", "every bias"])
def test_strips_are_those_of_the_whole_tensor(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """A product of fewer rows may sum in another order: one rounding of the sum, in the tensor's dtype, may differ."""
    base = bases[KINDS[kind][0]]
    checkpoint = opened(base, [write_adapter(tmp_path / "adapter", base, **KINDS[kind][1])])
    for name, reader in checkpoint.tensors.items():
        whole = checkpoint.read(name)
        strips = [checkpoint.read(name, slice(first, first + 3)) for first in range(0, reader.shape[0], 3)]
        torch.testing.assert_close(torch.cat(strips), whole, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sum_has_the_dtype_of_the_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", MIXTURE, dtype)
    adapter = write_adapter(tmp_path / "adapter", base, **KINDS["experts"][1])
    stored = load_file(adapter / WEIGHTS)
    save_file({name: tensor.bfloat16() for name, tensor in stored.items()}, adapter / WEIGHTS)
    assert differences(base, [adapter]) == []
    assert {reader.dtype for reader in opened(base, [adapter]).tensors.values()} == {dtype}


def test_adapters_are_merged_in_the_given_order(bases: dict[str, Path], plain_adapter: Path, tmp_path: Path) -> None:
    head = write_adapter(tmp_path / "head", bases[TIED], target_modules=["q_proj"], modules_to_save=["lm_head"])
    again = write_adapter(tmp_path / "again", bases[TIED], 1, target_modules=["lm_head", "q_proj"])
    orders = [[head, again, plain_adapter], [plain_adapter, again, head]]
    assert [differences(bases[TIED], order) for order in orders] == [[], []]
    heads = [opened(bases[TIED], order).read(HEAD) for order in orders]
    assert not torch.equal(*heads)  # a whole head replaces what was added to it before


@pytest.mark.parametrize("first", ["decoder and tower", "head of its own", "tokens", "adapted table"])
@pytest.mark.parametrize("second", ["tokens", "table that stays tied", "adapted head"])
def test_a_head_that_is_tied_still_is_so_for_the_next_adapter(
    first: str, second: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    kinds = (first, second)
    paths = [write_adapter(tmp_path / str(n), bases[TIED], n, **KINDS[kind][1]) for n, kind in enumerate(kinds)]
    assert differences(bases[TIED], paths) == []
    assert opened(bases[TIED], paths).tied is UNTIES.isdisjoint(kinds)


def set_config(root: Path, **values: Any) -> None:
    path = root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


HEADS = [kind for kind, (base, _) in KINDS.items() if base == TIED and ("table" in kind or "head" in kind)] + ["tokens"]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_head_is_compared_with_the_table_before_adapters_are_merged(
    equal: bool, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bases[TIED], tmp_path / "base"))
    tensors = load_file(base / SINGLE)
    save_file({**tensors, HEAD: tensors[TABLE] * (1 if equal else 2)}, base / SINGLE, {"format": "pt"})
    adapter = write_adapter(tmp_path / "adapter", base, **KINDS[kind][1])
    assert differences(base, [adapter]) == []
    checkpoint = opened(base, [adapter])
    assert checkpoint.base.tied is equal
    assert checkpoint.tied is (equal and kind not in UNTIES)
    if checkpoint.tied:
        assert torch.equal(checkpoint.read(HEAD), checkpoint.read(TABLE))


def test_adapters_are_merged_into_renamed_and_stacked_tensors(bases: dict[str, Path], tmp_path: Path) -> None:
    """What the files call the tensors, and how they hold experts, makes no difference."""
    adapter = write_adapter(tmp_path / "adapter", bases[MIXTURE], **KINDS["experts"][1])
    other = Path(shutil.copytree(bases[MIXTURE], tmp_path / "other"))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(other / SINGLE).items():
        module, _, stack = name.removeprefix("model.").rpartition(".")
        if not module.endswith(".experts"):
            tensors[name.removeprefix("model.")] = tensor
            continue
        for index, matrix in enumerate(tensor):
            parts = {"gate": matrix.chunk(2)[0], "up": matrix.chunk(2)[1]} if "gate" in stack else {"down": matrix}
            tensors |= {f"{module}.{index}.{part}_proj.weight": values.clone() for part, values in parts.items()}
    save_file(tensors, other / SINGLE, {"format": "pt"})
    expected, actual = opened(bases[MIXTURE], [adapter]), opened(other, [adapter])
    assert actual.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(actual.read(name), expected.read(name)) for name in expected.tensors)


def ignore_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterConfig, "scale", lambda self, *names: 1.0)


def forget_rank_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterConfig, "scale", lambda self, *names: self.lora_alpha / self.r)


def transpose_b(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: MatrixDelta, rows: slice) -> torch.Tensor:
        b = self.b.read(slice(0, self.b.shape[0]), torch.empty(self.b.shape, dtype=self.b.dtype))
        a = self.a.read(slice(0, self.a.shape[0]), torch.empty(self.a.shape, dtype=self.a.dtype))
        return (b.reshape(b.shape[::-1]).T @ a * self.scale)[rows]

    monkeypatch.setattr(MatrixDelta, "read", read)


@pytest.mark.parametrize("mistake", [ignore_alpha, forget_rank_patterns, transpose_b])
def test_a_mistake_in_the_merge_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None],
    bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = write_adapter(tmp_path / "adapter", bases[TIED], target_modules=PAIR, rank_pattern={"v_proj": 3})
    mistake(monkeypatch)
    assert differences(bases[TIED], [adapter])
