"""The matrix file: what it must cover, and that a mistake in it is one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from parity_tests.harness.cases.matrix import CASES, Case, PromptSpec, load_matrix
from parity_tests.harness.cases.picture_kinds import KINDS, draw_picture
from parity_tests.harness.plan import Subject, plan
from parity_tests.harness.sides.pixel_reference import load_file
from qwen3vl_export import promise
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDINGS, TIERS, VISION_ENCODER, bucket_name
from qwen3vl_export.errors import ParityError
from qwen3vl_export.promise import Grid
from qwen3vl_export.recipe import load_recipe

MATRIX = load_matrix()
GRAPHS: dict[str, Grid | None] = dict.fromkeys((VISION_ENCODER, EMBEDDINGS, DECODER))


def subject(held_out: bool = False, graphs: Mapping[str, Grid | None] = GRAPHS) -> Subject:
    return Subject({"parity": {"matrix": "quick", "held_out": held_out}}, graphs)


def test_standard_covers_what_it_must() -> None:
    cases = MATRIX.of_tier("standard")
    names = {case.name for case in cases}
    assert sum(case.has_pictures for case in cases) >= 24
    assert "users-case-16x16-after-24x24" in names
    assert any(not case.has_pictures and not case.is_vision_only for case in cases)
    assert any(case.has_video for case in cases)
    assert any(case.batch for case in cases)
    assert any(case.grids == ["1x2x2"] for case in cases)
    assert {len(case.images) for case in cases} >= {1, 2, 3}


def test_the_users_case_is_a_16x16_grid() -> None:
    case = next(case for case in MATRIX.cases if case.name == "users-case-16x16-after-24x24")
    assert [image.size for image in MATRIX.draw(case)[0].images] == [(16 * 16, 16 * 16)]


def test_tiers_contain_one_another() -> None:
    quick, standard, full = ({case.name for case in MATRIX.of_tier(tier)} for tier in TIERS)
    assert quick < standard < full


def test_the_full_tier_has_two_hundred_cases() -> None:
    assert len(MATRIX.of_tier("full")) >= 200


def test_another_seed_draws_other_sizes_and_the_same_seed_the_same() -> None:
    def random_names(seed: int) -> list[str]:
        cases = MATRIX.model_copy(update={"seed": seed}).of_tier("full")
        return [case.name for case in cases if case.name.startswith("random")]

    assert random_names(1) == random_names(1)
    assert not set(random_names(1)) & set(random_names(2))


def test_every_open_size_is_drawn() -> None:
    case = Case(
        name="r",
        tier="full",
        random=2,
        between=[40, 90],
        batch=[
            PromptSpec(images=["drawn any-size", "photo any-size"], ask="?"),
            PromptSpec(video="clip any-size x4", ask="?"),
        ],
    )
    first, second = MATRIX.model_copy(update={"cases": [case]}).of_tier("full")
    assert first.name != second.name
    widths = [image.width for prompt in MATRIX.draw(first) for image in (*prompt.images, *prompt.frames)]
    assert len(widths) == 2 + 4
    assert all(40 <= width <= 90 for width in widths)


def test_standard_has_every_kind_of_picture() -> None:
    cases = MATRIX.of_tier("standard")
    kinds = {text.split()[0] for case in cases for prompt in case.prompts for text in prompt.pictures}
    assert kinds == {*KINDS, "clip"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_size_it_says(kind: str) -> None:
    picture = draw_picture(f"{kind} 96x128", "seed")
    size = load_file(picture).size if isinstance(picture, bytes) else picture.size
    assert size == (96, 128)


def test_a_turned_file_lies_on_its_side() -> None:
    data = draw_picture("turned-jpeg 96x128", "seed")
    assert isinstance(data, bytes)
    assert PIL.Image.open(BytesIO(data)).size == (128, 96)


def test_more_than_16384_patches_are_covered() -> None:
    patches = [int(case.grid_thw.prod(1).sum()) for case in MATRIX.of_tier("standard") if case.is_vision_only]
    assert max(patches) > 16_384


def test_one_case_decodes_256_tokens() -> None:
    assert max(MATRIX.tokens_of(case) for case in MATRIX.of_tier("quick")) >= 256


def test_pictures_are_reproducible_and_equal_seeds_are_equal_pictures() -> None:
    case = Case(name="twins", tier="quick", images=["noise 9x7 #3", "noise 9x7 #3", "noise 9x7"], ask="?")
    first, second, unseeded = (np.asarray(image) for image in MATRIX.draw(case)[0].images)
    assert (first == second).all()
    assert (first != unseeded).any()
    assert (np.asarray(MATRIX.draw(case)[0].images[2]) == unseeded).all()


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(ParityError, match="no matrix named gigantic"):
        MATRIX.of_tier("gigantic")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: a, tier: quick, images: [drawn 4x4], question: What}", "cases.0.question"),
        ("{name: a, tier: quick, images: [drawn 4by4], ask: What}", "does not match"),
        ("{name: a, tier: quick, grids: [1x2x2], ask: What}", "exactly one of ask, batch and grids"),
        ("{name: a, tier: sometimes, ask: What}", "cases.0.tier"),
        ("{name: a, tier: quick, ask: What?}", "not YAML"),
        ("{name: a, tier: full, random: 3, between: [1, 9], images: [drawn 4x4], ask: What}", "belong together"),
        ("{name: a, tier: full, images: [drawn any-size], ask: What}", "belong together"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "cases.yaml"
    head = CASES.read_text("utf-8").partition("cases:")[0]
    path.write_text(f"{head}cases:\n  - {line}\n", "utf-8")
    with pytest.raises(ParityError, match=message) as caught:
        load_matrix(path)
    assert "\n" not in str(caught.value)


def test_ids_are_unique_and_read_as_the_matrix() -> None:
    ids = [check.id for check in plan("full", subject(held_out=True)).checks]
    assert len(ids) == len(set(ids))
    assert "vision[users-case-16x16-after-24x24]" in ids
    assert "exam[256x256]" in ids
    assert "accuracy[all-questions]" in ids


def test_few_questions_do_not_judge_accuracy() -> None:
    planned = plan("quick", subject(held_out=True))
    assert {check.stage for check in planned.checks} >= {"exam"}
    assert "too few" in planned.left_out["accuracy"]


def test_bound_encoders_get_their_own_grids() -> None:
    bound = GRAPHS | {bucket_name(*grid): grid for grid in ((24, 24), (8, 16))}
    del bound[VISION_ENCODER]
    vision_only = {check.name for check in plan(None, subject(graphs=bound)).checks if "grid" in check.name}
    assert vision_only == {"grid-24x24", "grid-8x16"}


def test_what_cannot_be_checked_is_listed() -> None:
    planned = plan(None, subject(graphs={VISION_ENCODER: None}))
    assert {check.stage for check in planned.checks} == {"sampling", "prompt", "preprocess", "positions", "vision"}
    assert planned.left_out["decoder[text-only]"] == "the artifact has no decoder_model_merged"
    assert planned.left_out["exam"] == "the recipe says held_out: false"


@pytest.mark.parametrize("graph", promise.GRAPHS)
def test_a_graph_that_is_promised_alone_is_compared(graph: str) -> None:
    stages = {check.stage for check in plan("quick", subject(graphs={graph: None})).checks}
    assert graph in frozenset().union(*map(promise.graphs_run, stages))


@pytest.mark.parametrize("graph", [EMBED_TOKENS, EMBEDDINGS])
def test_a_quantized_table_is_compared_in_whichever_graph_holds_it(graph: str) -> None:
    recipe = {"parity": {"matrix": "quick"}, "quantization": {EMBEDDINGS: {"method": "int8", "accuracy_level": 0}}}
    assert f"weights[{graph}]" in {check.id for check in plan("quick", Subject(recipe, {graph: None})).checks}


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"method": "int4"}, "weights"),
        ({"method": "int4", "algorithm": "gptq"}, "calibrated_weights"),
        ({"method": "source"}, "source_weights"),
    ],
)
def test_weights_have_the_limits_of_how_they_were_rounded(settings: dict[str, Any], stage: str) -> None:
    recipe = {"parity": {"matrix": "quick"}, "quantization": {DECODER: {**settings, "accuracy_level": 4}}}
    planned = plan("quick", Subject(recipe, {DECODER: None}))
    assert [check.stage for check in planned.checks if check.name == DECODER] == [stage]


@pytest.mark.parametrize(
    ("kept", "missing"),
    [("text-only", "preprocess"), ("grid-2x2", "prompt")],
)
def test_a_matrix_that_leaves_out_what_is_promised_is_refused(kept: str, missing: str) -> None:
    few = MATRIX.model_copy(update={"cases": [case for case in MATRIX.cases if case.name == kept]})
    said = rf"cases\.yaml: the quick matrix has no check of {missing}, which the recipe promises\. Add a case"
    with pytest.raises(ParityError, match=said):
        plan("quick", subject(), few)


BLOCKS: dict[str, Any] = {"method": "int4", "accuracy_level": 0}
DEQUANTIZED = ("dequantized_vision", "dequantized_embeddings", "dequantized_decoder", "dequantized_decode")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (BLOCKS, None),
        ({**BLOCKS, "method": "source"}, None),
        ({"method": "none"}, ""),
        ({"method": "int8_dynamic"}, "int8_dynamic rounds activations as well"),
        ({**BLOCKS, "accuracy_level": 4}, "accuracy_level 4 rounds activations as well"),
    ],
    ids=["blocks", "source", "none", "dynamic", "level-4"],
)
def test_quantized_graphs_are_also_compared_with_their_own_weights(method: dict[str, Any], reason: str | None) -> None:
    recipe = load_recipe("tiny").to_json_dict()
    recipe["quantization"] = {"decoder_model_merged": method}
    planned = plan("quick", replace(Subject.of_recipe(load_recipe("tiny")), recipe=recipe))
    stages = {check.stage for check in planned.checks}
    assert stages.issuperset(DEQUANTIZED) == (reason is None)
    if reason:
        assert all(planned.left_out[stage].startswith(reason) for stage in DEQUANTIZED)
