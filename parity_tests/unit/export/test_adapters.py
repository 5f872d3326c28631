"""LoRA adapters: the weights a build reads are those that PEFT merges, tensor by tensor, for every kind of adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.adapters import MIXTURE, TIED, UNTIED, merge_with_peft, write_adapter, write_base
from parity_tests.fixtures.quantized_checkpoints import is_quantized, write_quantized_checkpoint
from parity_tests.harness.sides.pytorch.torch_model import load_model
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter import checkpoint as checkpoints
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint import adapter as adapters
from qwen3vl_export.exporter.checkpoint.adapter import WEIGHTS, open_adapter
from qwen3vl_export.exporter.checkpoint.adapter.config import CONFIG, AdapterConfig
from qwen3vl_export.exporter.checkpoint.adapter.readers import MatrixDelta
from qwen3vl_export.exporter.checkpoint.files import SINGLE

HEAD, TABLE = "lm_head.weight", "model.language_model.embed_tokens.weight"
PAIR = ["q_proj", "v_proj"]
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


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind. Shared: copy it before changing it."""
    return {kind: write_base(tmp_path_factory.mktemp(kind), kind) for kind in (TIED, UNTIED, MIXTURE)}


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two products a layer. Shared: copy it before changing it."""
    return write_adapter(tmp_path_factory.mktemp("plain"), bases[TIED], target_modules=PAIR)


def opened(base: Path, adapters: Sequence[Path]) -> Checkpoint:
    return open_checkpoint(str(base)).adapted([open_adapter(str(adapter)) for adapter in adapters])


def differences(base: Path, adapters: Sequence[Path]) -> list[str]:
    """Tensors that are not PEFT's to the last bit."""
    checkpoint, merged = opened(base, adapters), merge_with_peft(base, adapters)
    names = {name: TABLE if name == HEAD and checkpoint.tied else name for name in merged}
    return [name for name, ours in names.items() if not torch.equal(checkpoint.read(ours).float(), merged[name])]


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


def test_adapters_are_merged_in_the_given_order(bases: dict[str, Path], plain: Path, tmp_path: Path) -> None:
    head = write_adapter(tmp_path / "head", bases[TIED], target_modules=["q_proj"], modules_to_save=["lm_head"])
    again = write_adapter(tmp_path / "again", bases[TIED], 1, target_modules=["lm_head", "q_proj"])
    orders = [[head, again, plain], [plain, again, head]]
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


OLDER_NAMES: dict[str, Callable[[str], str]] = {
    "without the prefix": lambda key: key.removeprefix("base_model.model."),
    "without language_model": lambda key: key.replace("model.language_model.", "model."),
    "without model": lambda key: key.replace("base_model.model.model.", "base_model.model."),
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("form", OLDER_NAMES)
def test_older_names_are_read(form: str, bases: dict[str, Path], plain: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain, tmp_path / "older"))
    renamed = {OLDER_NAMES[form](key): tensor for key, tensor in load_file(plain / WEIGHTS).items()}
    assert renamed.keys().isdisjoint(load_file(plain / WEIGHTS))
    save_file(renamed, adapter / WEIGHTS)
    assert differences(bases[TIED], [adapter]) == []
    new, old = opened(bases[TIED], [plain]), opened(bases[TIED], [adapter])
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
def test_what_cannot_be_merged_is_refused(case: str, bases: dict[str, Path], plain: Path, tmp_path: Path) -> None:
    settings, change, message = REFUSED[case]
    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | settings))
    with pytest.raises(CheckpointError) as error:
        _ = opened(bases[TIED], [adapter]).tensors
    assert message in str(error.value) and error.value.next
    forms_table.refused(forms_table.ADAPTERS, case, str(error.value), adapter)


def test_adapters_saved_by_pickle_are_refused(plain: Path, tmp_path: Path) -> None:
    shutil.copyfile(plain / CONFIG, tmp_path / CONFIG)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing") as error:
        open_adapter(str(tmp_path))
    assert "save_pretrained" in error.value.next
    forms_table.refused(forms_table.ADAPTERS, "`adapter_model.bin`", str(error.value), tmp_path)


def test_an_adapter_is_a_directory_or_a_repository(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(source: str, revision: str, *_: object, **__: object) -> tuple[Path, str]:
        asked.append((source, revision))
        return plain, "c" * 40

    monkeypatch.setattr(adapters, "download", download)
    shutil.copytree(plain, tmp_path / "runs" / "lora")
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
    bases: dict[str, Path], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(source: str, revision: str, *_: object) -> tuple[Path, str]:
        asked.append((source, revision))
        return (adapter if source == "me/lora" else bases[TIED]), "c" * 40

    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    settings = {"base_model_name_or_path": "org/base", "revision": "v3"}
    (adapter / CONFIG).write_text(json.dumps(json.loads((adapter / CONFIG).read_text()) | settings))
    monkeypatch.setattr(checkpoints, "download", download)
    record = open_checkpoint("me/lora", "v1").provenance()
    assert asked == [("me/lora", "v1"), ("org/base", "v3")]
    assert (record["source"], record["adapters"][0]["source"]) == ("org/base", "me/lora")


def test_an_adapter_that_is_there_in_name_only_is_refused(plain: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    (adapter / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(CheckpointError, match="a Git LFS pointer"):
        open_adapter(str(adapter))


def test_an_adapter_as_the_checkpoint_finds_its_base(bases: dict[str, Path], plain: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain, tmp_path / "runs" / "adapter"))
    shutil.copytree(bases[TIED], tmp_path / "base")
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": "../../base"}
    (adapter / CONFIG).write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(adapter))
    expected = opened(bases[TIED], [plain])
    assert all(torch.equal(checkpoint.read(name), expected.read(name)) for name in expected.tensors)
    record = checkpoint.provenance()
    assert (record["source"], record["adapters"][0]["source"]) == ("base", "adapter")
    assert set(record["adapters"][0]["files"]) == {CONFIG, WEIGHTS}
    assert set(checkpoint.files) >= {adapter / CONFIG, adapter / WEIGHTS}
    forms_table.built(forms_table.ADAPTERS, "an adapter in place of the checkpoint", how="its base is found")


@pytest.mark.parametrize("base", ["../gone", "", "."])
def test_a_base_that_cannot_be_found_is_an_error(base: str, plain: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": base}
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(str(adapter))
    assert "--adapter" in error.value.next


def test_adapters_that_name_each_other_as_their_base_are_an_error(plain: Path, tmp_path: Path) -> None:
    for name, base in (("one", "../two"), ("two", "../one")):
        adapter = Path(shutil.copytree(plain, tmp_path / name))
        config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": base}
        (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"one: adapters that name each other as their base\. Pass --checkpoint"):
        open_checkpoint(str(tmp_path / "one"))


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
