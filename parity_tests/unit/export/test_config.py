"""config.json: what is not exported is refused in one line that names the key; of any JSON, nothing is a traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedConfig, Qwen3VLConfig, Qwen3VLMoeConfig

from qwen3vl_export.errors import CheckpointError, Qwen3VLExportError
from qwen3vl_export.exporter.checkpoint import Checkpoint
from qwen3vl_export.exporter.checkpoint.config import NEIGHBOURS, read_config
from qwen3vl_export.exporter.checkpoint.ignored import warn_of_ignored
from qwen3vl_export.exporter.checkpoint.settings.tokens import load_tokenizer
from qwen3vl_export.exporter.plan import plan_build
from qwen3vl_export.exporter.skeletons import check_head_size
from qwen3vl_export.recipe import load_recipe

from ...fixtures import forms_table
from ...fixtures.forms_table import CONFIG
from ...fixtures.moe_checkpoint import mixture_config
from ...fixtures.paths import ROOT, TINY
from ...fixtures.standin import tiny_facts

Change = Callable[[dict[str, Any]], object]


def published(mixture: bool = False) -> dict[str, Any]:
    """The tiny model's configuration in the published form, with published token ids."""
    raw: dict[str, Any] = json.loads((TINY / "config.json").read_text("utf-8"))
    if mixture:
        raw = mixture_config(raw)
        del raw["text_config"]["tie_word_embeddings"]
    text, vision = raw["text_config"], raw["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
        "vocab_size": 151936,
        "dtype": raw.pop("dtype"),
    }
    del vision["rope_parameters"]
    vision["model_type"] = raw["model_type"]
    names = {"vision_start": 151652, "vision_end": 151653, "image": 151655, "video": 151656}
    return raw | {f"{name}_token_id": token for name, token in names.items()}


def write(root: Path, raw: object) -> Path:
    (root / "config.json").write_text(json.dumps(raw), "utf-8")
    return root


def edited(root: Path, change: Change, mixture: bool = False) -> Path:
    raw = published(mixture)
    change(raw)
    return write(root, raw)


def refusal(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_config(root)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(root))
    return message


def text(**values: Any) -> Change:
    return lambda raw: raw["text_config"].update(values)


def vision(**values: Any) -> Change:
    return lambda raw: raw["vision_config"].update(values)


def top(**values: Any) -> Change:
    return lambda raw: raw.update(values)


def rope(**values: Any) -> Change:
    return lambda raw: raw["text_config"]["rope_scaling"].update(values)


REFUSED: dict[str, tuple[Change, str]] = {  # what it is -> the change, and words of the line
    "image id missing from the vocabulary": (top(image_token_id=151936), "image_token_id is 151936, vocab_size 151936"),
    "image id -1": (top(image_token_id=-1), "image_token_id is -1"),
    "video id -1": (top(video_token_id=-1), "video_token_id is -1"),
    "vision start beyond": (top(vision_start_token_id=10**6), "vision_start_token_id is 1000000"),
    "vision end negative": (top(vision_end_token_id=-2), "vision_end_token_id is -2"),
    "image and video alike": (top(image_token_id=151656), "image_token_id and video_token_id are both 151656"),
    "image id text": (top(image_token_id="151655"), "image_token_id"),
    "image id null": (top(image_token_id=None), "image_token_id"),
    "pad id beyond": (text(pad_token_id=151936), "pad_token_id is 151936"),
    "text activation": (text(hidden_act="swiglu"), "text_config.hidden_act is 'swiglu'"),
    "text activation with parameters": (text(hidden_act="xielu"), "text_config.hidden_act is 'xielu'"),
    "tower activation": (vision(hidden_act="gelu_tanh"), "vision_config.hidden_act is 'gelu_tanh'"),
    "sliding window": (text(sliding_window=4096, use_sliding_window=True), "text_config.sliding_window is 4096"),
    "chunked attention": (text(attention_chunk_size=128), "text_config.attention_chunk_size is 128"),
    "sliding layers": (text(layer_types=["sliding_attention", *["full_attention"] * 3]), "text_config.layer_types"),
    "no layer types": (text(layer_types="full_attention"), "layer_types"),
    "bidirectional": (text(is_causal=False), "text_config.is_causal is false"),
    "shared caches": (text(kv_sharing_modes=["reuse"] * 4), "text_config.kv_sharing_modes"),
    "layers unlike": (text(per_layer_config={"0": {"intermediate_size": 64}}), "text_config.per_layer_config"),
    "encoder and decoder": (top(is_encoder_decoder=True), "is_encoder_decoder"),
    "tuples": (text(return_dict=False), "text_config.is_encoder_decoder or return_dict"),
    "no layers": (text(num_hidden_layers=0), "text_config.num_hidden_layers is 0"),
    "too many layers": (text(num_hidden_layers=10**9), "text_config.num_hidden_layers is 1000000000, a whole number"),
    "a vocabulary of all atoms": (text(vocab_size=10**30), "text_config.vocab_size is 1000"),
    "frequencies of nothing": (rope(rope_type="linear", factor=float("nan")), "not finite"),
    "layers as text": (text(num_hidden_layers="4"), "num_hidden_layers"),
    "a fraction of layers": (text(num_hidden_layers=3.5), "num_hidden_layers"),
    "heads unlike": (text(num_key_value_heads=4), "num_attention_heads is 6, not a multiple"),
    "odd head size": (text(head_dim=33), "head_dim"),
    "norms": (text(rms_norm_eps=-1.0), "text_config.rms_norm_eps is -1.0"),
    "norms of nothing": (text(rms_norm_eps=float("nan")), "text_config.rms_norm_eps is nan"),
    "unknown dtype": (text(dtype="auto"), "auto"),
    "no blocks": (vision(depth=0), "vision_config.depth is 0"),
    "two patch sizes": (vision(patch_size=[16, 14]), "vision_config.patch_size is [16, 14]"),
    "two temporal sizes": (vision(temporal_patch_size=[2, 2]), "vision_config.temporal_patch_size is [2, 2]"),
    "merge of none": (vision(spatial_merge_size=0), "vision_config.spatial_merge_size is 0"),
    "merge too large": (vision(spatial_merge_size=8), "vision_config.spatial_merge_size is 8"),
    "grey pictures": (vision(in_channels=1), "vision_config.in_channels is 1"),
    "tower heads": (vision(num_heads=5), "vision_config.hidden_size is 96"),
    "tower heads of no quarter": (vision(num_heads=16), "vision_config.hidden_size is 96"),
    "tower width": (vision(out_hidden_size=64), "vision_config.out_hidden_size is 64, text_config.hidden_size 128"),
    "map twice": (vision(deepstack_visual_indexes=[1, 1]), "vision_config.deepstack_visual_indexes are [1, 1]"),
    "map of no layer": (vision(deepstack_visual_indexes=[1, 4]), "vision_config.deepstack_visual_indexes are [1, 4]"),
    "map from the end": (vision(deepstack_visual_indexes=[-1]), "vision_config.deepstack_visual_indexes are [-1]"),
    "tower yarn": (
        vision(rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_theta=10000.0),
        "vision_config's rotary settings",
    ),
    "tower head size": (vision(head_dim=64), "vision_config.head_dim is 64"),
    "rope type": (rope(rope_type="su"), "rope_type 'su', which transformers cannot compute"),
    "rope type of Qwen2-VL": (text(rope_scaling={"type": "mrope", "mrope_section": [6, 5, 5]}), "rope_type 'mrope'"),
    "yarn without a factor": (rope(rope_type="yarn"), "factor"),
    "a factor in words": (rope(rope_type="yarn", factor="3"), "rope_type 'yarn', which transformers cannot compute"),
    "half rotated": (rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5), "rotate 16 of head_dim 32"),
    "too few factors": (
        rope(rope_type="longrope", short_factor=[1.0] * 3, long_factor=[1.0] * 3),
        "rope_type 'longrope'",
    ),
    "two sections": (rope(mrope_section=[16, 16]), "mrope_section is [16, 16]"),
    "no theta": (lambda raw: raw["text_config"].pop("rope_theta"), "text_config states no rope_theta"),
    "theta in words": (text(rope_theta="5e6"), "rope_theta '5e6'"),
    "theta 0": (text(rope_theta=0), "rope_theta 0"),
    "rope is a list": (text(rope_scaling=[1]), "rotary settings are [1]"),
    "text of nothing": (top(text_config=None), "states no rope_theta"),
    "text is a list": (top(text_config=[]), "states no rope_theta"),
    "tower is a word": (top(vision_config="tower"), "vision_config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    message = refusal(edited(tmp_path, change))
    assert words in message
    forms_table.refused(CONFIG, name, message, tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', experts are exported with silu"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 8 experts"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"mlp_only_layers": "1"}, "mlp_only_layers"),
    ],
)
def test_what_is_not_exported_of_mixtures_is_refused_by_name(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    message = refusal(edited(tmp_path, text(**values), mixture=True))
    assert words in message
    forms_table.refused(CONFIG, f"a mixture: {', '.join(values)}", message, tmp_path)


@pytest.mark.parametrize("mixture", [False, True])
def test_the_published_form_is_read_and_nothing_is_said_about_it(mixture: bool, tmp_path: Path) -> None:
    config = read_config(write(tmp_path, published(mixture)))
    assert config.text_config.rope_parameters["rope_theta"] == 100000.0
    assert list(warn_of_ignored(config)) == []
    forms_table.built(CONFIG, "a mixture as published" if mixture else "a dense model as published")


def test_missing_token_ids_are_transformers_defaults(tmp_path: Path) -> None:
    """They fit the published tokenizer, and no smaller vocabulary."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = read_config(edited(tmp_path, lambda raw: [raw.pop(name) for name in names]))
    assert [getattr(config, name) for name in names] == [151655, 151656, 151652, 151653]
    raw = {key: value for key, value in published().items() if key not in names}
    raw["text_config"]["vocab_size"] = 544
    assert "image_token_id is 151655, vocab_size 544" in refusal(write(tmp_path, raw))


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '"qwen3_vl"', "true", "{", "", "[" * 100_000, "\ufeff{}", '{"model_type": ["qwen3_vl"]}'],
    ids=range(10),
)
def test_no_json_is_a_traceback(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, "utf-8")
    assert "config.json" in refusal(tmp_path)


def test_no_text_is_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    assert "not valid JSON" in refusal(tmp_path)


@pytest.mark.parametrize(
    "value", [None, True, -1, 0, 3, 10**30, 1.5, float("inf"), "x", [], [1], {}, {"a": 1}], ids=repr
)
def test_any_value_of_any_key_is_read_or_refused_in_one_line(value: object, tmp_path: Path) -> None:
    for mixture in (False, True):
        plain = published(mixture)
        for section in (None, "text_config", "vision_config"):
            for key in list(plain if section is None else plain[section]):
                raw = published(mixture)
                (raw if section is None else raw[section])[key] = value
                try:
                    list(warn_of_ignored(read_config(write(tmp_path, raw))))
                except Qwen3VLExportError as error:
                    assert "\n" not in str(error)


@pytest.mark.parametrize("model_type", NEIGHBOURS)
def test_neighbours_are_refused_with_what_they_are(model_type: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"model_type": model_type}))
    assert f"model_type is '{model_type}' ({NEIGHBOURS[model_type]})" in message
    assert "this tool exports qwen3_vl and qwen3_vl_moe" in message
    forms_table.refused(CONFIG, f"`{model_type}`", message, tmp_path)


def test_the_top_level_decides_whether_the_head_is_tied(tmp_path: Path) -> None:
    """transformers fills True into a mixture's text configuration where the published file says nothing."""
    config = read_config(write(tmp_path, published(mixture=True)))
    assert config.text_config.tie_word_embeddings is True and config.tie_word_embeddings is False
    config = read_config(edited(tmp_path, text(tie_word_embeddings=True), mixture=True))
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rope(mrope_interleaved=False), "rotary setting mrope_interleaved (False)"),
        (text(partial_rotary_factor=0.5), "rotary setting partial_rotary_factor (0.5)"),
        (text(norm_topk_prob=False), "text_config.norm_topk_prob (False)"),
        (text(shared_expert_intermediate_size=512), "text_config.shared_expert_intermediate_size (512)"),
        (vision(window_size=112), "vision_config.window_size (112)"),
        (top(max_position_embeddings=1_000_000), "max_position_embeddings beside text_config (1000000)"),
        (top(rope_theta=5), "rope_theta beside text_config (5)"),
        (text(tie_word_embeddings=False), None),
    ],
)
def test_what_transformers_ignores_is_named(change: Change, words: str | None, tmp_path: Path) -> None:
    lines = list(warn_of_ignored(read_config(edited(tmp_path, change))))
    assert len(lines) == (words is not None)
    assert all("transformers ignores" in line and str(words) in line for line in lines)
    if words is not None:
        forms_table.built(CONFIG, words, warnings=[f"warning: {line}" for line in lines])


def test_a_setting_of_the_text_that_the_top_level_contradicts_is_named(tmp_path: Path) -> None:
    raw = published() | {"tie_word_embeddings": False}
    raw["text_config"]["tie_word_embeddings"] = True
    config = read_config(write(tmp_path, raw))
    (line,) = warn_of_ignored(config)
    assert "text_config.tie_word_embeddings (True)" in line


def with_config(root: Path, raw: dict[str, Any]) -> Checkpoint:
    """The tiny checkpoint's tokenizer beside another config.json."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / file, root / file)
    write(root, raw)
    return Checkpoint(root, "tiny", "local", read_config(root))


@pytest.mark.parametrize("name", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_token_ids_are_those_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    raw = json.loads((TINY / "config.json").read_text("utf-8"))
    load_tokenizer(tmp_path, with_config(tmp_path, raw).facts)
    with pytest.raises(CheckpointError, match=rf"{name} is 3, in the tokenizer <\|.*\|> is \d+"):
        load_tokenizer(tmp_path, with_config(tmp_path, {**raw, name: 3}).facts)


def test_a_token_that_the_tokenizer_does_not_have_is_named(tmp_path: Path) -> None:
    checkpoint = with_config(tmp_path, json.loads((TINY / "config.json").read_text("utf-8")))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = (TINY / file).read_text("utf-8").replace("<|image_pad|>", "<|picture|>")
        (tmp_path / file).write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=r"image_token_id is 524, in the tokenizer there is no <\|image_pad\|>"):
        load_tokenizer(tmp_path, checkpoint.facts)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "image_token": "<|picture|>"}), "utf-8")
    load_tokenizer(tmp_path, checkpoint.facts)


def test_a_plan_warns_of_what_is_ignored_and_refuses_foreign_token_ids(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TINY, tmp_path / "checkpoint"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"checkpoint: {{source: {root}}}\ngraphs: [embed_tokens]\n", "utf-8")
    raw = json.loads((root / "config.json").read_text("utf-8"))
    raw["text_config"]["rope_parameters"]["mrope_interleaved"] = False
    write(root, raw)
    lines: list[str] = []
    plan_build(load_recipe(recipe), out=tmp_path / "out", log=lines.append)
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: config.json: transformers ignores text_config's rotary setting mrope_interleaved (False), and so do "
        "the graphs"
    ]
    write(root, raw | {"image_token_id": 3})
    with pytest.raises(CheckpointError, match="image_token_id is 3"):
        plan_build(load_recipe(recipe), out=tmp_path / "out", log=lines.append)


def test_head_sizes_that_onnxruntime_does_not_take_are_refused_for_its_target() -> None:
    recipes = {name: load_recipe(ROOT / "recipes" / f"{name}.yaml") for name in ("tiny", "tiny-portable")}
    for size, accepted in ((8, True), (72, True), (12, False)):
        check_head_size(recipes["tiny-portable"], replace(tiny_facts(), head_dim=size))
        if accepted:
            check_head_size(recipes["tiny"], replace(tiny_facts(), head_dim=size))
        else:
            with pytest.raises(Qwen3VLExportError, match=f"size {size}.*target: portable"):
                check_head_size(recipes["tiny"], replace(tiny_facts(), head_dim=size))


def test_every_field_of_transformers_is_in_the_table_of_settings() -> None:
    """docs/checkpoints.md says of each what becomes of it."""
    page = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    table = page.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    named = set(re.findall(r"`(\w+)`", table))
    for config in (Qwen3VLConfig, Qwen3VLMoeConfig):
        classes = [config, *(spec.config_class for spec in config.sub_configs_defaults.values())]
        for name in {field.name for item in classes for field in fields(item)} - {"text_config", "vision_config"}:
            assert name in named, f"{name} of {config.__name__}"
    assert {field.name for field in fields(PreTrainedConfig)} <= named
