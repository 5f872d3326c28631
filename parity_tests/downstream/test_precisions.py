"""Every precision a recipe offers, and weights in many files: both runtimes load the directory as it is, and it meets
its own profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3vl_export.pipeline import build
from qwen3vl_export.recipe import load_recipe

from ..bench import Bench
from ..harness import open_bench
from ..matrix import load_matrix
from ..tiny_builds import ROOT, build_once
from .answer import Answer, complaints, outcomes, text_of
from .cases import pictures_of
from .genai import Genai
from .transformers_js import Question, run

SPLIT = "tiny, split"
RECIPES = ("tiny-fp16", "tiny-bf16", "tiny-int8", "tiny-int4", SPLIT)
CASES = [
    case
    for case in load_matrix().of_tier("quick")
    if case.name in ("users-case-16x16-after-24x24", "photograph-451x300", "text-only")
]
Ask = Callable[[Bench, Path], dict[str, Answer | str]]


def ask_genai(bench: Bench, folder: Path) -> dict[str, Answer | str]:
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
    patch_dim = bench.artifact.manifest.facts.patch_dim
    return run(bench.artifact.root, questions, folder, bench.matrix.new_tokens, patch_dim)


@pytest.mark.parametrize("ask", [ask_genai, ask_transformers_js], ids=["onnxruntime-genai", "transformers.js"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_answers_within_its_profile(recipe: str, ask: Ask, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    split = recipe == SPLIT
    bench = open_bench(request.getfixturevalue("tiny_split_artifact") if split else build_once(recipe))
    assert len(CASES) == 3
    answers = ask(bench, tmp_path)
    messages = []
    for case in CASES:
        answer = answers[case.name]
        assert isinstance(answer, Answer), answer
        messages += complaints(outcomes(bench, case, answer))
    assert messages == []


def test_genai_reads_a_table_that_is_stored_once(tmp_path: Path) -> None:
    recipe = tmp_path / "once.yaml"
    runtimes = "packaging: {runtimes: [onnxruntime, onnxruntime-genai]}"
    recipe.write_text(f"extends: {ROOT / 'recipes' / 'tiny.yaml'}\n{runtimes}\n")
    bench = open_bench(build(load_recipe(recipe), out=tmp_path / "once", log=lambda line: None))
    (shared,) = bench.artifact.manifest.graphs["decoder_model_merged"]["shared"]
    assert shared["file"] == "onnx/embed_tokens.onnx_data"
    answer = ask_genai(bench, tmp_path)[CASES[0].name]
    assert isinstance(answer, Answer), answer
    assert complaints(outcomes(bench, CASES[0], answer)) == []
