"""The matrix file: what it must cover, and that a mistake in it is one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import pytest

from parity_tests.fixtures.paths import ROOT
from parity_tests.fixtures.standin import tiny_facts
from parity_tests.harness.cases.fitting import picture_tokens
from parity_tests.harness.cases.matrix import CASES, Case, Matrix, PromptSpec, load_matrix
from parity_tests.harness.cases.picture_kinds import KINDS, PICTURE, draw_picture, parse
from parity_tests.harness.checks.stages import STAGES
from parity_tests.harness.plan import Subject, plan
from parity_tests.harness.sides.pytorch.pixel_reference import load_file
from qwen3vl_export import promise
from qwen3vl_export.contract import (
    DECODER,
    EMBED_TOKENS,
    EMBEDDINGS,
    TIERS,
    TIERS_INCLUDED,
    VISION_ENCODER,
    bucket_name,
)
from qwen3vl_export.errors import ParityError
from qwen3vl_export.promise import Grid
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.runtime.pictures.preprocess import PixelRules, image_grid

MATRIX = load_matrix()
GRAPHS: dict[str, Grid | None] = dict.fromkeys((VISION_ENCODER, EMBEDDINGS, DECODER))


def subject(held_out: bool = False, graphs: Mapping[str, Grid | None] = GRAPHS, **recipe: Any) -> Subject:
    parity, packaging = {"matrix": "quick", "held_out": held_out}, {"runtimes": []}
    return Subject({"parity": parity, "packaging": packaging, "graphs": list(graphs), **recipe}, graphs)


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


def test_tiers_have_the_cases_of_those_they_include() -> None:
    names = {tier: {case.name for case in MATRIX.of_tier(tier)} for tier in TIERS}
    assert all(names[part] <= names[tier] for tier, included in TIERS_INCLUDED.items() for part in included)
    assert not names["release"] <= names["standard"]
    assert not names["standard"] <= names["release"]
    assert all(case.name in names[case.tier] for case in MATRIX.cases if not case.random)


def test_the_documentation_counts_the_cases_of_each_tier() -> None:
    text = (ROOT / "docs" / "parity.md").read_text("utf-8")
    assert all(f"| `{tier}` | {len(MATRIX.of_tier(tier))} |" in text for tier in TIERS)


def sizes_of(case: Case) -> list[tuple[int, int]]:
    """Width and height of each picture."""
    matches = [parse(PICTURE, picture) for prompt in case.prompts for picture in prompt.images]
    return [(int(match["width"]), int(match["height"])) for match in matches]


def test_release_has_what_is_as_large_as_what_people_use() -> None:
    cases = MATRIX.of_tier("release")
    assert {(1024, 1024), (2480, 3508)} <= {size for case in cases for size in sizes_of(case)}
    assert {"fewest", "most"} <= {case.of for case in MATRIX.cases if case.tier in TIERS_INCLUDED["release"]}
    long = [case for case in cases if case.words]
    assert [len(MATRIX.draw(case)[0].ask.split()) for case in long] == [1500 + len(case.ask.split()) for case in long]


def pixels_of(matrix: Matrix, name: str) -> int:
    case = next(case for case in matrix.of_tier("standard") if case.name == name)
    return prod(sizes_of(case)[0])


BELOW, AT_LEAST = ("below-budget-20x20", "below-budget-7x90"), "minimum-64x64"
PAGE = "page-2480x3508"
ABOVE, AT_MOST = ("above-budget-640x480", "above-budget-1100x700"), "maximum-512x512"


@pytest.mark.parametrize("budget", [(4096, 262_144), (65_536, 16_777_216), (3136, 12_845_056), (200_704, 1_003_520)])
def test_sizes_meant_relative_to_a_budget_are_the_checkpoints(budget: tuple[int, int]) -> None:
    fewest, most = budget
    matrix = MATRIX.for_checkpoint(*budget)
    assert all(pixels_of(matrix, name) < fewest for name in BELOW)
    assert pixels_of(matrix, AT_LEAST) == pytest.approx(fewest, rel=0.02)
    assert pixels_of(matrix, AT_MOST) == pytest.approx(most, rel=0.02)
    assert all(pixels_of(matrix, name) > most for name in ABOVE)


def test_sizes_are_as_written_for_the_budget_they_are_written_for() -> None:
    written = {case.name: sizes_of(case) for case in MATRIX.cases if not case.random}
    fitted = {case.name: sizes_of(case) for case in MATRIX.of_tier("full")}
    assert {name: fitted[name] for name in written} == written


def test_other_sizes_stay_whatever_the_budget() -> None:
    matrix = MATRIX.for_checkpoint(65_536, 16_777_216)
    assert pixels_of(matrix, "odd-150x211") == 150 * 211


def test_a_case_is_fitted_once() -> None:
    matrix = MATRIX.for_checkpoint(65_536, 16_777_216)
    case = next(case for case in MATRIX.cases if case.name == AT_LEAST)
    assert matrix.fit(matrix.fit(case)) == matrix.fit(case)
    assert [picture.size for picture in matrix.draw(case)[0].images] == [(256, 256)]


class PublishedSizes:
    """Sizing for a checkpoint with the published pixel budget and context."""

    facts = replace(tiny_facts(), max_position_embeddings=262_144)
    image_rules = PixelRules(65_536, 16_777_216, (0.5,) * 3, (0.5,) * 3, 1 / 255, None)

    def of_image(self, height: int, width: int, budget: None) -> Grid:
        return image_grid(height, width, self.image_rules, self.facts)

    def of_video(self, frames: int, height: int, width: int, budget: None, listed: bool) -> Grid:
        return self.of_image(height, width, budget)


def test_of_pictures_that_cost_hours_only_prompt_and_pixels_are_compared() -> None:
    published = replace(subject(), sizing=cast(Any, PublishedSizes()))
    planned = plan("release", published)
    stages = {case: [check.stage for check in planned.checks if check.name == case] for case in (ABOVE[0], PAGE)}
    assert stages == {ABOVE[0]: ["prompt", "preprocess"], PAGE: [*STAGES]}
    assert planned.left_out[ABOVE[0]].startswith("its pictures make 16,170 tokens, over the 9,000")
    named = plan("release", published, only=[ABOVE[0]])
    assert [check.stage for check in named.checks] == [*STAGES]


def test_pictures_that_the_context_does_not_hold_are_not_asked_about() -> None:
    class ShortContext(PublishedSizes):
        facts = replace(PublishedSizes.facts, max_position_embeddings=8_579)

    short = replace(subject(), sizing=cast(Any, ShortContext()))
    planned = plan("release", short)
    assert not {ABOVE[0], PAGE} & {check.name for check in planned.checks}
    assert planned.left_out[PAGE] == "its pictures make 8,580 tokens, the context holds 8,579"
    with pytest.raises(ParityError, match=f"^{PAGE}: its pictures make 8,580 tokens, the context holds 8,579"):
        plan("release", short, only=[PAGE])


def test_pictures_are_counted_as_tokens_before_they_are_drawn() -> None:
    cases = {case.name: case for case in MATRIX.of_tier("standard")}
    sizing = cast(Any, PublishedSizes())
    assert picture_tokens(cases["text-only"], sizing) == [0]
    assert picture_tokens(cases["users-case-16x16-after-24x24"], sizing) == [64]
    assert picture_tokens(cases["two-equal-images"], sizing) == [2 * (8 * 9)]  # 256x288 pixels are the fewest
    assert picture_tokens(cases["video-5-frames-96x160"], sizing) == [3 * (7 * 11)]  # three pairs of frames


def test_large_cases_change_no_text_that_follows_a_prompt() -> None:
    without = MATRIX.model_copy(update={"cases": [case for case in MATRIX.cases if case.tier != "release"]})
    case = next(case for case in MATRIX.cases if case.name == "batch-text-only")
    assert list(islice(MATRIX.forced_text(case), 200)) == list(islice(without.forced_text(case), 200))


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
        ("{name: a, tier: full, of: most, ask: What}", "of is for pictures"),
        ("{name: a, tier: full, of: size, images: [drawn 4x4], ask: What}", "cases.0.of"),
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
    quantization = {EMBEDDINGS: {"method": "int8", "accuracy_level": 0}}
    planned = plan("quick", subject(graphs={graph: None}, quantization=quantization, dtype="float32"))
    assert f"weights[{graph}]" in {check.id for check in planned.checks}


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ({"method": "int4"}, "weights"),
        ({"method": "int4", "algorithm": "gptq"}, "calibrated_weights"),
        ({"method": "source"}, "source_weights"),
    ],
)
def test_weights_have_the_limits_of_how_they_were_rounded(settings: dict[str, Any], stage: str) -> None:
    quantization = {DECODER: {**settings, "accuracy_level": 4}}
    planned = plan("quick", subject(graphs={DECODER: None}, quantization=quantization, dtype="float32"))
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
    ("method", "target", "model_type", "rounds"),
    [
        (BLOCKS, "ort", "qwen3_vl", False),
        ({**BLOCKS, "method": "source"}, "ort", "qwen3_vl", False),
        ({"method": "int8_dynamic"}, "ort", "qwen3_vl", True),
        ({"method": "int8_dynamic"}, "portable", "qwen3_vl", True),
        ({**BLOCKS, "accuracy_level": 4}, "ort", "qwen3_vl", True),
        ({**BLOCKS, "accuracy_level": 4}, "portable", "qwen3_vl", False),
        (BLOCKS, "ort", "qwen3_vl_moe", False),
        ({**BLOCKS, "method": "int8"}, "ort", "qwen3_vl_moe", True),
        ({**BLOCKS, "method": "int8"}, "portable", "qwen3_vl_moe", False),
    ],
)
def test_quantized_graphs_are_also_compared_with_their_own_weights(
    method: dict[str, Any], target: str, model_type: str, rounds: bool
) -> None:
    recipe = load_recipe("tiny").to_json_dict()
    recipe |= {"quantization": {"decoder_model_merged": method}, "target": target}
    whole = replace(Subject.of_recipe(load_recipe("tiny")), recipe=recipe, model_type=model_type)
    stages = {check.stage for check in plan("quick", whole).checks}
    assert stages.issuperset(DEQUANTIZED)
    assert {stage for stage in stages if stage.startswith("rounded_")} == ({"rounded_decoder"} if rounds else set())


def test_a_float_artifact_has_no_weights_of_its_own() -> None:
    stages = {check.stage for check in plan("quick", subject()).checks}
    assert not any(stage.startswith(("dequantized_", "rounded_")) for stage in stages)
