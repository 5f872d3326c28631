"""Every form in which weights are stored gives the tensors of transformers' `from_pretrained`, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.forms_table import FILES, HEADS, NAMES, QUANTIZED
from parity_tests.fixtures.moe_checkpoint import EXPERTS, split_experts, write_moe_checkpoint
from parity_tests.fixtures.paths import TINY
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter import submodules
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint.files import SETTINGS
from qwen3vl_export.exporter.checkpoint.names import HEAD, TABLE, checkpoint_name
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.skeletons import needs_tower
from qwen3vl_export.exporter.submodules import check_tensors
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.quantize import Int4

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NORM = "model.language_model.norm.weight"  # in the first shard
POSITIONS = "model.visual.pos_embed.weight"  # in the second shard
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> Tensors:
    return load_file(TINY / WEIGHTS)


def write(root: Path, tensors: Mapping[str, Tensor], file: str = WEIGHTS) -> Path:
    """A checkpoint of the tiny model's config with these tensors."""
    if not (root / "config.json").is_file():
        shutil.copyfile(TINY / "config.json", root / "config.json")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, root / file, metadata={"format": "pt"})
    return root


def edit_config(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def write_shards(root: Path, first: Tensors, second: Tensors, weight_map: Mapping[str, str]) -> Path:
    for file, tensors in zip(SHARDS, (first, second), strict=True):
        write(root, tensors, file)
    (root / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}))
    return root


def split(tensors: Tensors) -> tuple[Tensors, Tensors, dict[str, str]]:
    """The decoder's tensors, the tower's tensors, and the index of both."""
    halves = [{n: t for n, t in tensors.items() if ("visual" in n) is visual} for visual in (False, True)]
    return halves[0], halves[1], {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}


def opened_and_checked(root: Path, tower: bool = True) -> tuple[Checkpoint, list[str]]:
    opened = open_checkpoint(str(root))
    warnings: list[str] = []
    check_tensors(opened, torch.float32, tower, warnings.append)
    assert all(line.startswith("warning: ") and "\n" not in line for line in warnings)
    return opened, warnings


def refusal(root: Path, tower: bool = True) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened_and_checked(root, tower)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_as_transformers(opened: Checkpoint, dtype: torch.dtype = torch.bfloat16, prefix: str = "") -> Any:
    """Compare every parameter of transformers' model with the tensor that the checkpoint reads for it."""
    mixture = opened.config.model_type == "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration if mixture else Qwen3VLForConditionalGeneration
    model = model_class.from_pretrained(opened.root, dtype=dtype)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) is opened.tied
    for name, expected in model.state_dict().items():
        if name.startswith(prefix):
            tensor = opened.read(checkpoint_name(name, opened.tied) if name == HEAD else name).to(dtype).contiguous()
            assert torch.equal(tensor.view(torch.uint8), expected.contiguous().view(torch.uint8)), name
    return model


def changed(table: Tensor, value: float) -> Tensor:
    """A copy whose last value is another one."""
    table = table.clone()
    table[-1, -1] = value
    return table


STORED_HEADS: dict[
    str, tuple[Callable[[Tensor], Tensor | None], bool]
] = {  # of the table -> head, whether they are tied
    "no head": (lambda table: None, True),
    "an equal head": (lambda table: table, True),
    "a head with another last value": (lambda table: changed(table, 7.0), False),
    "a head equal in float32": (lambda table: table.float(), True),
    "a head that differs beyond bfloat16": (
        lambda table: changed(table.float(), float(table[-1, -1]) * (1 + 2**-20)),
        False,
    ),
    "a head with a NaN": (lambda table: changed(table, float("nan")), False),
}


@pytest.mark.parametrize("form", STORED_HEADS)
def test_a_head_that_differs_from_the_table_is_a_head_of_its_own(form: str, tmp_path: Path, tiny: Tensors) -> None:
    make, tied = STORED_HEADS[form]
    head = make(tiny[TABLE])
    opened, warnings = opened_and_checked(write(tmp_path, tiny if head is None else tiny | {HEAD: head}))
    assert opened.tied is tied
    assert any("tie_word_embeddings" in line and HEAD in line for line in warnings) is not tied
    assert_as_transformers(opened, torch.float32)
    forms_table.built(HEADS, form, tmp_path, warnings, "one table" if tied else "two tables")


def test_a_head_of_its_own_is_in_the_artifact(tmp_path: Path, tiny: Tensors) -> None:
    head = tiny[TABLE].flip(0)
    root = tmp_path / "checkpoint"
    shutil.copytree(TINY, root)
    write(root, tiny | {HEAD: head})
    recipe = tmp_path / "text.yaml"
    recipe.write_text(
        f"checkpoint: {{source: {root}}}\n"
        "graphs: [embed_tokens, decoder_model_merged]\n"
        "packaging: {tied_head: link}\n"
    )
    built = build(load_recipe(recipe), out=tmp_path / "out", log=lambda line: None)
    for graph, expected in (("embed_tokens", tiny[TABLE]), ("decoder_model_merged", head)):
        model = onnx.load(built / "onnx" / f"{graph}.onnx")
        tables = [t for t in model.graph.initializer if tuple(t.dims) == tuple(head.shape)]
        (table,) = (onnx.numpy_helper.to_array(tensor) for tensor in tables)
        assert (table == expected.float().numpy()).all()


def test_zeros_of_both_signs_are_equal(tmp_path: Path, tiny: Tensors) -> None:
    table, head = changed(tiny[TABLE], 0.0), changed(tiny[TABLE], -0.0)
    opened, _ = opened_and_checked(write(tmp_path, tiny | {TABLE: table, HEAD: head}))
    assert opened.tied
    assert_as_transformers(opened)


def test_a_head_larger_than_a_strip_is_compared_to_its_end(
    tmp_path: Path, tiny: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen3vl_export.exporter.checkpoint import tensors

    monkeypatch.setattr(tensors, "STRIP_BYTES", 1000)
    assert open_checkpoint(str(write(tmp_path, tiny | {HEAD: tiny[TABLE]}))).tied
    assert not open_checkpoint(str(write(tmp_path, tiny | {HEAD: changed(tiny[TABLE], 7.0)}))).tied


def test_a_tied_head_without_a_table_is_the_table(tmp_path: Path, tiny: Tensors) -> None:
    tensors = {name: tensor for name, tensor in tiny.items() if name != TABLE} | {HEAD: tiny[TABLE]}
    opened, _ = opened_and_checked(write(tmp_path, tensors))
    assert opened.tied
    assert_as_transformers(opened)
    forms_table.built(HEADS, "a head and no table", how="the head is the table")


def test_the_top_of_the_config_says_whether_the_head_is_tied(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {HEAD: tiny[TABLE]})
    edit_config(root, lambda config: config.update(tie_word_embeddings=False))
    opened, warnings = opened_and_checked(root)
    assert not opened.tied and not warnings
    assert_as_transformers(opened)
    write(root, tiny)
    assert "tensor lm_head.weight [544, 128] is missing" in refusal(root)


def test_a_head_of_another_shape_is_refused_as_in_transformers(tmp_path: Path, tiny: Tensors) -> None:
    root = write(tmp_path, tiny | {HEAD: tiny[TABLE][:10]})
    message = refusal(root)
    assert "lm_head.weight is [10, 128], config.json asks for [544, 128]" in message
    forms_table.refused(HEADS, "a head of another shape", message, root)
    with pytest.raises(RuntimeError, match="mismatch"):
        Qwen3VLForConditionalGeneration.from_pretrained(root)


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
