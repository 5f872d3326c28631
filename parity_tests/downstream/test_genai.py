"""onnxruntime-genai from PyPI loads the directory a build wrote, and answers as PyTorch does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qwen3vl_export.artifact import open_artifact

from ..faults.catalogue import FAULTS
from ..harness.cases.matrix import Case, Prompt
from ..harness.cases.picture_kinds import rotated_jpeg
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench
from .answer import Answer, complaints, diagnosis, is_tiny, judge_resizing, outcomes, rounded_half_up, text_of
from .cases import one_prompt_cases, pictures_of, sizes
from .genai import Genai

CASES = one_prompt_cases(max_images=5)
DEEPSTACK = next(fault for fault in FAULTS if fault.name == "deepstack-dropped")


@pytest.fixture(scope="module")
def bench(tiny_artifact: Path) -> Bench:
    return open_bench(tiny_artifact)


@pytest.fixture(scope="module")
def genai(tiny_artifact: Path) -> Genai:
    return Genai(tiny_artifact, open_artifact(tiny_artifact, check=False).manifest.facts.patch_dim)


def ask(genai: Genai, bench: Bench, case: Case) -> Answer:
    prompt = bench.prompts(case)[0]
    text = text_of(bench.prompt_reference, prompt)
    return genai.answer(text, pictures_of(prompt), bench.matrix.new_tokens)


def test_the_cases_are_enough() -> None:
    assert len(sizes(CASES)) >= 12
    assert {0, 1, 2} <= {len(case.images) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_answers_as_pytorch_does(genai: Genai, bench: Bench, case: Case) -> None:
    answer = ask(genai, bench, case)
    judged = outcomes(bench, case, answer)
    pictures = pictures_of(bench.prompts(case)[0])
    expected_grids = [None if is_tiny(image) else rounded_half_up(image) for image in pictures]
    if any(expected_grids):
        assert [tuple(grid[1:]) for grid in answer.inputs.image_grid_thw.tolist()] == expected_grids
    elif pictures and not any(map(is_tiny, pictures)):
        judged.append(judge_resizing(bench, case, answer))
    assert complaints(judged) == []


def test_texts_of_one_batch_must_be_of_equal_length(genai: Genai, bench: Bench) -> None:
    """If this fails, padding was fixed: drop the limit."""
    longer, *rest = ["What is 3 plus 4?", "What is 2 plus 2?", "Hi!"]

    def prompts(*questions: str) -> list[str]:
        return [text_of(bench.prompt_reference, Prompt((), (), question)) for question in questions]

    alone = [genai.texts([prompt], 24)[0] for prompt in prompts(longer, *rest)]
    assert genai.texts(prompts(longer, rest[0]), 24) == alone[:2]
    assert genai.texts(prompts(longer, rest[1]), 24)[1] != alone[2]


def test_a_picture_in_a_later_turn_is_refused(genai: Genai, bench: Bench) -> None:
    case = next(case for case in CASES if len(case.images) == 1)
    prompt = bench.prompts(case)[0]
    text = text_of(bench.prompt_reference, prompt)
    generator = genai.generator(2048)
    generator.set_inputs(genai.process(text, pictures_of(prompt)))
    while not generator.is_done():
        generator.generate_next_token()
    with pytest.raises(RuntimeError, match="guard: the number of image and video pad tokens differs"):
        generator.set_inputs(genai.process("<|im_end|>\n" + text, pictures_of(prompt)))


def test_a_photograph_is_not_turned_as_its_exif_data_says(genai: Genai) -> None:
    """If this fails, it was fixed: drop the limit."""
    text = "<|vision_start|><|image_pad|><|vision_end|>What is this?"
    inputs = genai.inputs(genai.process(text, [rotated_jpeg(random.Random(1), (64, 128))]))
    assert inputs.image_grid_thw.tolist() == [[1, 4, 8]]  # upright it is 8 patches high


def test_a_batch_of_pictures_becomes_one_row(genai: Genai, bench: Bench) -> None:
    case = next(case for case in CASES if len(case.images) == 1)
    prompt = bench.prompts(case)[0]
    text = text_of(bench.prompt_reference, prompt)
    named = genai.process([text, text], 2 * pictures_of(prompt))
    assert named["input_ids"].shape()[0] == 1


def test_a_package_without_deepstack_is_recognized(tiny_artifact: Path, tmp_path: Path, bench: Bench) -> None:
    """What published packages for this runtime do: their features carry no DeepStack."""
    faulty = Genai(DEEPSTACK.plant(tiny_artifact, tmp_path / "faulty"), bench.artifact.manifest.facts.patch_dim)
    case = next(case for case in CASES if len(case.images) == 2)
    answer = ask(faulty, bench, case)
    assert any(message.startswith("prefill") for message in complaints(outcomes(bench, case, answer)))
    assert diagnosis(bench, answer) == "DeepStack maps dropped (decoder, DeepStack)"
