"""Every precision of a recipe, and weights in many files: both runtimes load the directory unchanged, and it meets its
profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.recipe import load_recipe

from ..fixtures.paths import ROOT
from ..fixtures.tiny_builds import build_once
from ..harness.cases.matrix import load_matrix
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench
from .answer import Answer, complaints, outcomes, text_of
from .cases import pictures_of
from .genai import Genai
from .transformers_js import Question, run

RECIPES = ("tiny-fp16", "tiny-bf16", "tiny-int8", "tiny-int4")
SIDE_BY_SIDE = "tiny-precisions"
CASES = [
    case
    for case in load_matrix().of_tier("quick")
    if case.name in ("users-case-16x16-after-24x24", "photograph-451x300", "text-only")
]


def ask_genai(bench: Bench) -> dict[str, Answer | str]:
    genai = Genai(bench.artifact.root, bench.artifact.manifest.facts.patch_dim)
    prompts = {case.name: bench.prompts(case)[0] for case in CASES}
    return {
        name: genai.answer(text_of(bench.prompt_reference, prompt), pictures_of(prompt), bench.matrix.new_tokens)
        for name, prompt in prompts.items()
    }


def ask_transformers_js(bench: Bench, folder: Path) -> dict[str, Answer | str]:
    prompts = {case.name: bench.prompts(case)[0] for case in CASES}
    questions = [
        Question(name, text_of(bench.prompt_reference, prompt), pictures_of(prompt)) for name, prompt in prompts.items()
    ]
    artifact = bench.artifact
    patch_dim, dtype = artifact.manifest.facts.patch_dim, artifact.precision
    return run(artifact.root, questions, folder, bench.matrix.new_tokens, patch_dim, dtype=dtype)


def check(bench: Bench, answers: dict[str, Answer | str]) -> None:
    assert len(CASES) == 3
    messages = []
    for case in CASES:
        answer = answers[case.name]
        assert isinstance(answer, Answer), answer
        messages += complaints(outcomes(bench, case, answer))
    assert messages == []


@pytest.mark.parametrize("recipe", [*RECIPES, SIDE_BY_SIDE])
def test_onnxruntime_genai_answers_within_its_profile(recipe: str) -> None:
    """Of several precisions it loads the default."""
    bench = open_bench(build_once(recipe))
    check(bench, ask_genai(bench))


@pytest.mark.parametrize("dtype", ["fp16", "int8", "q4", "q4f16"])
def test_one_directory_holds_them_all_for_transformers_js(dtype: str, tmp_path: Path) -> None:
    """Under the names it knows; a graph that two of them share has both names."""
    bench = open_bench(build_once(SIDE_BY_SIDE), precision=dtype)
    check(bench, ask_transformers_js(bench, tmp_path))


def test_transformers_js_casts_bfloat16_weights(tmp_path: Path) -> None:
    bench = open_bench(build_once("tiny-bf16"))
    check(bench, ask_transformers_js(bench, tmp_path))


def test_a_cache_in_8_bits(tiny_cache_artifact: Path, tmp_path: Path) -> None:
    bench = open_bench(tiny_cache_artifact, checkpoint=ROOT / "recipes" / "checkpoints" / "tiny")
    check(bench, ask_genai(bench))
    check(bench, ask_transformers_js(bench, tmp_path))


def test_weights_in_many_files(tiny_split_artifact: Path, tmp_path: Path) -> None:
    bench = open_bench(tiny_split_artifact)
    check(bench, ask_genai(bench))
    check(bench, ask_transformers_js(bench, tmp_path))


@pytest.mark.usefixtures("share_traces")
def test_a_table_that_is_the_head_by_a_link(tmp_path: Path) -> None:
    recipe = tmp_path / "linked.yaml"
    recipe.write_text(f"extends: {ROOT / 'recipes' / 'tiny.yaml'}\npackaging: {{tied_head: link}}\n")
    built = build(load_recipe(recipe), out=tmp_path / "linked", log=lambda line: None)
    bench = open_bench(built, checkpoint=ROOT / "recipes" / "checkpoints" / "tiny")
    (second,) = bench.artifact.manifest.second_names
    assert (built / second).stat().st_nlink == 2
    check(bench, ask_genai(bench))
    check(bench, ask_transformers_js(bench, tmp_path))
