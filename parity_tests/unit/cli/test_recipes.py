"""Recipes: what loads, what is inherited, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity_tests.fixtures.commands import invoke
from parity_tests.fixtures.paths import RECIPES
from parity_tests.fixtures.recipe_files import COMMIT, write
from qwen3vl_export.promise import promised_graphs
from qwen3vl_export.recipe import list_recipes, load_recipe, recipe_schema


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipe_loads(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert recipe.description
    if recipe.checkpoint_dir is not None:
        assert recipe.checkpoint_dir.is_dir()


def test_every_official_model_has_a_recipe() -> None:
    sizes = ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")
    expected = {f"Qwen/Qwen3-VL-{size}-{kind}" for size in sizes for kind in ("Instruct", "Thinking")}
    expected |= {f"Qwen/Qwen3-VL-{kind}-{size}" for size in ("2B", "8B") for kind in ("Embedding", "Reranker")}
    sources = {load_recipe(file).checkpoint.source for file in RECIPES.glob("qwen3-vl-*.yaml")}
    assert sources == expected


def test_a_recipe_is_found_by_name_or_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_recipe("tiny").to_json_dict() == load_recipe(RECIPES / "tiny.yaml").to_json_dict()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("tiny").name == "tiny"
    assert "tiny-fixed" in list_recipes()


def test_fixed_and_bucket_sizes_become_patch_grids() -> None:
    fixed, buckets, dynamic = (
        promised_graphs(load_recipe(name).to_json_dict(), 16) for name in ("tiny-fixed", "tiny-buckets", "tiny")
    )
    assert fixed["vision_encoder"] == (24, 24)
    assert buckets["vision_encoder_16x32"] == (16, 32) and "vision_encoder" not in buckets
    assert dynamic["vision_encoder"] is None


def test_extends_merges_mappings_and_replaces_lists(folder: Path) -> None:
    recipe = load_recipe(write("mine.yaml", "extends: tiny-buckets.yaml\nvision: {sizes: [[64, 64], [96, 64]]}\n"))
    assert recipe.vision.grid == "buckets"
    assert recipe.vision.sizes == ((64, 64), (96, 64))
    assert recipe.name == "mine"
    assert recipe.description == ""


def test_an_inherited_checkpoint_directory_stays_where_it_is(folder: Path) -> None:
    recipe = load_recipe(write("below/mine.yaml", "extends: ../tiny.yaml\n"))
    assert recipe.checkpoint.source == "../checkpoints/tiny"
    assert recipe.checkpoint_dir is not None
    assert recipe.checkpoint_dir.resolve() == (folder / "checkpoints" / "tiny").resolve()


def test_inherited_adapters_stay_where_they_are(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "a.yaml").write_text(
        "checkpoint: {source: org/name, adapters: [./x, org/lora@main, /absolute/y]}\n", "utf-8"
    )
    (folder / "child.yaml").write_text("extends: base/a.yaml\n", "utf-8")
    recipe = load_recipe(folder / "child.yaml")
    assert recipe.checkpoint.adapters == ("./base/x", "org/lora@main", "/absolute/y")
    assert recipe.adapters == (str(folder / "base" / "x"), "hf://org/lora@main", "/absolute/y")
    assert {folder / "base" / "x", Path("/absolute/y")} <= set(recipe.inputs)
    assert recipe.to_json_dict()["checkpoint"]["adapters"] == ["./base/x", "org/lora@main", "./y"]


def test_another_source_inherits_no_revision(folder: Path) -> None:
    write("base.yaml", f"checkpoint: {{source: Qwen/A, revision: {COMMIT}}}\n")
    assert load_recipe(write("a.yaml", "extends: base.yaml\n")).checkpoint.revision == COMMIT
    assert (
        load_recipe(write("b.yaml", "extends: base.yaml\ncheckpoint: {source: Qwen/B}\n")).checkpoint.revision == "main"
    )


def test_tolerances_follow_the_dtype(folder: Path) -> None:
    assert load_recipe("tiny.yaml").parity.tolerances == "float32"
    assert load_recipe(write("half.yaml", "extends: tiny.yaml\ndtype: float16\n")).parity.tolerances == "float16"


def test_json_is_complete_and_names_no_place_on_this_machine(folder: Path) -> None:
    values = load_recipe("tiny.yaml").to_json_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["min_onnxruntime"] == "1.23.0"
    assert values["checkpoint"]["source"] == "./checkpoints/tiny"
    absolute = load_recipe(write("far.yaml", f"checkpoint: {{source: {folder}/checkpoints/tiny}}\n"))
    assert str(folder) not in json.dumps(absolute.to_json_dict())


def test_the_schema_file_is_current() -> None:
    shipped = json.loads((RECIPES / "recipe.schema.json").read_text("utf-8"))
    assert shipped == recipe_schema(), "Write it again: qwen3vl-export recipes schema --out recipes/recipe.schema.json"


def test_the_schema_replaces_only_a_schema(folder: Path) -> None:
    out, earlier = folder / "schema.json", {**recipe_schema(), "properties": {}}
    out.write_text(json.dumps(earlier), "utf-8")
    assert invoke("recipes", "schema", "--out", out).exit_code == 0
    assert json.loads(out.read_text("utf-8")) == recipe_schema()
    for text in ("", "[1]", '{"title": "mine"}', "name: a\n"):
        out.write_text(text, "utf-8")
        result = invoke("recipes", "schema", "--out", out)
        assert result.exit_code == 2 and "already exists and is no schema of recipes" in result.stderr
        assert out.read_text("utf-8") == text
