"""A recipe in a precision: how it is named, what it inherits, what the shipped precisions say, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.fixtures.paths import RECIPES
from parity_tests.harness.judging.verdicts import load_profile
from qwen3vl_export.cli.fleet import in_precisions
from qwen3vl_export.contract import DECODER
from qwen3vl_export.errors import RecipeError
from qwen3vl_export.recipe import find_recipe, in_precision, list_precisions, list_recipes, load_recipe
from qwen3vl_export.recipe.model import Recipe

PRECISIONS = sorted(path.stem for path in (RECIPES / "precisions").glob("*.yaml"))
STORAGE = {  # dtype, the methods of tower, token table, decoder and cache, and the tolerances
    "fp32": ("float32", "none", "none", "none", "none", "float32"),
    "bf16": ("bfloat16", "none", "none", "none", "none", "float32"),
    "fp16": ("float16", "none", "none", "none", "none", "float16"),
    "int8": ("float32", "int8", "int8", "int8", "none", "int8"),
    "int4": ("float32", "int8", "int8", "int4", "none", "int4"),
    "int4-fast": ("float32", "int8_dynamic", "int8", "int4", "none", "int4"),
    "source": ("bfloat16", "none", "none", "source", "none", "float32"),
    "cuda": ("float16", "none", "none", "none", "none", "float16"),
    "cuda-int4": ("float16", "none", "none", "int4", "none", "int4"),
    "web": ("float16", "none", "none", "int4", "none", "int4"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with recipes of its own."""
    (tmp_path / "recipes" / "precisions").mkdir(parents=True)
    shutil.copy(RECIPES / "tiny.yaml", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def storage(recipe: Recipe) -> tuple[str, ...]:
    methods = (getattr(recipe.quantization, graph).method for graph in type(recipe.quantization).model_fields)
    return (recipe.dtype, *methods, recipe.parity.tolerances)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_shipped_recipe_can_be_built_in_every_precision(precision: str) -> None:
    names = [name for name in list_recipes() if name.startswith("qwen3-vl-")]
    assert names
    for name in names:
        recipe, base = load_recipe(f"{name}-{precision}"), load_recipe(name)
        assert recipe.name == f"{name}-{precision}"
        assert recipe.description.startswith(f"{base.description}, ")
        assert storage(recipe) == STORAGE[precision]
        assert (recipe.checkpoint, recipe.graphs, recipe.target) == (base.checkpoint, base.graphs, base.target)
        assert load_profile(recipe.parity.tolerances)


def test_precisions_that_differ_in_experts_share_all_but_the_decoder() -> None:
    recipe = load_recipe("tiny-precisions")
    half = recipe.precisions["fp16"]
    twice = {"fp16": half, "q4f16": half.model_copy(update={"experts": "operator"})}
    recipe = recipe.model_copy(update={"precisions": twice})
    files = {graph: recipe.file_precision("q4f16", graph) for graph in recipe.graphs}
    assert files == {graph: "q4f16" if graph == DECODER else "fp16" for graph in recipe.graphs}
    assert recipe.at("q4f16").experts == "operator" and recipe.at("fp16").experts == "auto"


def test_the_default_of_published_sizes_is_lossless() -> None:
    for name in list_recipes():
        if name.startswith("qwen3-vl-"):
            assert storage(load_recipe(name)) == STORAGE["bf16"]


def test_the_web_precision_has_the_names_of_transformers_js_and_no_further_bytes() -> None:
    recipe = load_recipe("tiny-web")
    assert list(recipe.precisions) == ["q4f16"]
    assert {recipe.file_precision("q4f16", graph) for graph in recipe.graphs} == {""}
    assert "transformers.js" in recipe.packaging.runtimes


@pytest.mark.parametrize("precision", ["int8", "int4", "int4-fast"])
def test_decoders_for_cpus_multiply_in_8_bits(precision: str) -> None:
    """In float32, onnxruntime restores all 8-bit weights for every token, and takes three times as long with 4 bits."""
    settings = load_recipe(f"qwen3-vl-2b-instruct-{precision}").quantization.decoder_model_merged
    assert getattr(settings, "accuracy_level", None) == 4


def test_a_recipe_of_that_name_comes_first() -> None:
    assert in_precision("tiny", "int4") == "tiny-int4"
    assert load_recipe("tiny-int4").calibration is not None
    assert find_recipe("tiny-int4").name == "tiny-int4.yaml"
    assert find_recipe("qwen3-vl-8b-instruct-int4").name == "qwen3-vl-8b-instruct.yaml"


def test_a_directory_does_not_hide_a_recipe(folder: Path) -> None:
    for name in ("tiny", "tiny-int8", "strange"):
        (folder / name).mkdir()
    assert load_recipe("tiny").name == "tiny"
    assert load_recipe(in_precision("tiny", "int8")).name == "tiny-int8"
    with pytest.raises(RecipeError, match="strange: is a directory"):
        load_recipe("strange")


def test_a_precision_that_the_recipe_describes_itself_is_that_one() -> None:
    recipe = load_recipe(in_precision("tiny-precisions", "q4"))
    assert recipe.name == "tiny-precisions-q4"
    assert recipe.precisions == {}
    assert recipe.quantization == load_recipe("tiny-precisions").precisions["q4"].quantization
    assert recipe.parity.tolerances == "int4"


def test_adding_a_precision_is_adding_a_file(folder: Path) -> None:
    (folder / "recipes" / "precisions" / "mixed.yaml").write_text(
        "description: mixed\nquantization: {decoder_model_merged: {method: int8}}\nparity: {tolerances: int4}\n"
    )
    assert "mixed" in list_precisions()
    for name in ("tiny-mixed", "recipes/tiny-mixed.yaml"):
        recipe = load_recipe(name)
        assert recipe.name == "tiny-mixed"
        assert recipe.parity.tolerances == "int4" and recipe.parity.held_out
        assert recipe.checkpoint_dir == Path("recipes/checkpoints/tiny")
        assert Path("recipes/precisions/mixed.yaml") in recipe.inputs


def test_a_precision_is_complete(folder: Path) -> None:
    """What the recipe says about storage is gone, its own tolerances too; everything else stays."""
    (folder / "recipes" / "mine.yaml").write_text(
        "extends: tiny.yaml\ndtype: float16\nname: other\nquantization: {embeddings: {method: int8}}\n"
        "precisions: {q4: {}}\nparity: {tolerances: int8, matrix: quick}\n"
    )
    recipe = load_recipe("mine-bf16")
    assert storage(recipe) == STORAGE["bf16"]
    assert (recipe.name, recipe.parity.matrix, recipe.precisions) == ("other-bf16", "quick", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("checkpoint: {source: ./x}\n", "precisions/bad.yaml: checkpoint: not a key of a precision. Move it into"),
        ("dtype: fp16\n", 'precisions/bad.yaml: dtype: "fp16" is not one of'),
        ("dtyp: float16\n", "precisions/bad.yaml: dtyp: not a key of a precision"),
    ],
)
def test_a_mistake_in_a_precision_names_its_file(folder: Path, text: str, expected: str) -> None:
    (folder / "recipes" / "precisions" / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-bad")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    {
        "build tiny --precision int5": "tiny: has no precision int5. Did you mean int8?",
        "build recipes/tiny.yaml --precision xyz": "recipes/tiny.yaml: has no precision xyz. Precisions: bf16, cuda,",
        "build tinny --precision int4": "tinny: no recipe of that name. Did you mean tiny?",
        "build qwen3-vl-8b-instruct-in4": "Did you mean qwen3-vl-8b-instruct-int4?",
        "recipes show tiny --precision int5": "tiny: has no precision int5.",
        "fleet plan tiny --precision int5 --store x": "tiny: has no precision int5.",
        "build tiny-portable --precision int4": "quantization.decoder_model_merged.symmetric: the portable target has",
    }.items(),
    ids=lambda value: value if value.count(" ") < 4 else "",
)
def test_a_precision_that_cannot_be_is_one_line(arguments: str, expected: str) -> None:
    assert_one_line(invoke(*arguments.split()), expected)


def test_a_fleet_has_every_recipe_in_every_precision() -> None:
    recipes = ["tiny", "recipes/tiny.yaml"]
    named = ["tiny-int8", "tiny-web", "recipes/tiny-int8.yaml", "recipes/tiny-web.yaml"]
    assert in_precisions(recipes, ["int8", "web"]) == named
    assert in_precisions(recipes, None) == recipes
    assert [load_recipe(name).name for name in named] == 2 * ["tiny-int8", "tiny-web"]


def test_show_takes_a_precision() -> None:
    shown = invoke("recipes", "show", "qwen3-vl-8b-instruct", "--precision", "int4")
    assert shown.exit_code == 0
    assert shown.stdout == invoke("recipes", "show", "qwen3-vl-8b-instruct-int4").stdout
    assert "name: qwen3-vl-8b-instruct-int4" in shown.stdout
