"""transformers.js from npm loads the directory a build wrote, and answers as PyTorch does."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from ..harness.cases.matrix import Case
from ..harness.cases.picture_kinds import rotated_jpeg
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench
from .answer import Answer, complaints, is_tiny, judge_resizing, outcomes, rounded_half_up, text_of
from .cases import one_prompt_cases, pictures_of, sizes
from .transformers_js import Question, run

CASES = one_prompt_cases(max_images=1)
TWO_IMAGES = [case for case in one_prompt_cases(max_images=2) if len(case.images) == 2]
TEXT_ONLY = next(case for case in CASES if not case.images)


@pytest.fixture(scope="module")
def bench(tiny_artifact: Path) -> Bench:
    return open_bench(tiny_artifact)


def ask(
    bench: Bench, cases: list[Case], folder: Path, no_grid: bool = False, directory: Path | None = None
) -> dict[str, Answer | str]:
    questions = []
    for case in cases:
        prompt = bench.prompts(case)[0]
        questions.append(Question(case.name, text_of(bench.prompt_reference, prompt), pictures_of(prompt)))
    facts = bench.artifact.manifest.facts
    return run(directory or bench.artifact.root, questions, folder, bench.matrix.new_tokens, facts.patch_dim, no_grid)


@pytest.fixture(scope="module")
def answers(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer | str]:
    return ask(bench, [*CASES, *TWO_IMAGES], tmp_path_factory.mktemp("transformers-js"))


def is_rough(bench: Bench, case: Case) -> bool:
    """Whether its filter gives another picture: it shrinks without smoothing, and noise consists of edges."""
    budget = bench.artifact.json_file("preprocessor_config.json")["size"]["longest_edge"]
    above = any(image.width * image.height > budget for image in pictures_of(bench.prompts(case)[0]))
    return above or case.images[0].startswith("noise")


def test_the_cases_are_enough() -> None:
    assert len(sizes(CASES)) >= 12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_answers_as_pytorch_does(answers: dict[str, Answer | str], bench: Bench, case: Case) -> None:
    answer = answers[case.name]
    assert isinstance(answer, Answer), answer
    judged = outcomes(bench, case, answer)
    pictures = pictures_of(bench.prompts(case)[0])
    expected_grids = [None if is_tiny(image) else rounded_half_up(image) for image in pictures]
    if any(expected_grids):
        assert [tuple(grid[1:]) for grid in answer.inputs.image_grid_thw.tolist()] == expected_grids
    elif pictures and not any(map(is_tiny, pictures)) and not is_rough(bench, case):
        judged.append(judge_resizing(bench, case, answer))
    assert complaints(judged) == []


def test_a_prompt_costs_one_row_of_logits(answers: dict[str, Answer | str]) -> None:
    """All rows of a long prompt take more memory than the weights."""
    computed = {name: answer.computed_rows for name, answer in answers.items() if isinstance(answer, Answer)}
    assert len(computed) >= len(CASES)
    assert [name for name, rows in computed.items() if rows is None or set(rows.tolist()) != {1}] == []


@pytest.mark.parametrize("case", TWO_IMAGES, ids=lambda case: case.name)
def test_two_pictures_in_a_prompt_fail_in_its_processor(answers: dict[str, Answer | str], case: Case) -> None:
    assert isinstance(answers[case.name], str)


def test_a_photograph_is_turned_as_its_exif_data_says(bench: Bench, tmp_path: Path) -> None:
    text = "<|vision_start|><|image_pad|><|vision_end|>What is this?"
    question = Question("turned", text, [rotated_jpeg(random.Random(1), (64, 128))])
    patch_dim = bench.artifact.manifest.facts.patch_dim
    answer = run(bench.artifact.root, [question], tmp_path, new_tokens=1, patch_dim=patch_dim)["turned"]
    assert isinstance(answer, Answer), answer
    assert answer.inputs.image_grid_thw.tolist() == [[1, 8, 4]]


def test_a_prompt_without_a_picture_needs_an_empty_grid(bench: Bench, tmp_path: Path) -> None:
    """Without one, its positions after the prompt are wrong. If this fails, it was fixed: drop the limit."""
    answer = ask(bench, [TEXT_ONLY], tmp_path, no_grid=True)[TEXT_ONLY.name]
    assert isinstance(answer, Answer)
    messages = complaints(outcomes(bench, TEXT_ONLY, answer))
    assert any(message.startswith("generate") for message in messages)


def test_a_package_that_does_not_ask_for_normalizing_is_recognized(bench: Bench, tmp_path: Path) -> None:
    """What published packages do: they copy the checkpoint's file, and the runtime has no default."""
    package = tmp_path / "package"
    shutil.copytree(bench.artifact.root, package)
    shutil.copyfile(bench.checkpoint / "preprocessor_config.json", package / "preprocessor_config.json")
    case = next(case for case in CASES if case.images)
    answer = ask(bench, [case], tmp_path, directory=package)[case.name]
    assert isinstance(answer, Answer)
    assert "pixel_mean_abs" in judge_resizing(bench, case, answer).message
