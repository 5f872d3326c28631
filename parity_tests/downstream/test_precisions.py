"""Every precision a recipe offers, in both runtimes: the directory loads unmodified and meets its own profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..bench import Bench
from ..harness import open_bench
from ..matrix import load_matrix
from ..tiny_builds import build_once
from .answer import Answer, complaints, outcomes, text_of
from .cases import pictures_of
from .genai import Genai
from .transformers_js import Question, run

RECIPES = ("tiny-fp16", "tiny-bf16", "tiny-int8", "tiny-int4")
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
def test_it_answers_within_its_profile(recipe: str, ask: Ask, tmp_path: Path) -> None:
    bench = open_bench(build_once(recipe))
    assert len(CASES) == 3
    answers = ask(bench, tmp_path)
    messages = []
    for case in CASES:
        answer = answers[case.name]
        assert isinstance(answer, Answer), answer
        messages += complaints(outcomes(bench, case, answer))
    assert messages == []
