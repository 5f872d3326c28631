"""Boxes and points: found in any answer, reported if invalid, drawn in the right place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_export.runtime.grounding import COLOURS, Region, draw, find_regions

CAT = {"bbox_2d": [100, 250, 500, 750], "label": "cat"}
NOSE = {"point_2d": [300, 400], "label": "nose"}
REGIONS = [Region((100, 250, 500, 750), "cat"), Region((300, 400), "nose")]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([CAT, NOSE]),
        f"Here they are:\n```json\n{json.dumps([CAT, NOSE], indent=2)}\n```\nThat is all {{really}}.",
        f"{json.dumps(CAT)}\n{json.dumps(NOSE)}",
        json.dumps({"objects": {"first": [CAT], "rest": [NOSE]}}),
        json.dumps([CAT, NOSE])[:-1] + ', {"bbox_2d": [1, 2, 3',  # cut short
        '{"objects": [' + json.dumps(CAT) + ", " + json.dumps(NOSE),
    ],
)
def test_regions_are_found_in_any_text(text: str) -> None:
    assert find_regions(text) == (REGIONS, [])


def test_one_object_may_hold_both() -> None:
    assert find_regions(json.dumps(CAT | NOSE)) == (
        [Region((100, 250, 500, 750), "nose"), Region((300, 400), "nose")],
        [],
    )
    assert find_regions('{"bbox_2d": [0, 0, 1000.0, 1000]}') == ([Region((0, 0, 1000, 1000))], [])


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"bbox_2d": [1, 2, 3]}, r"bbox_2d [1, 2, 3]: not 4 numbers"),
        ({"bbox_2d": "1,2,3,4"}, 'bbox_2d "1,2,3,4": not 4 numbers'),
        ({"bbox_2d": [1, 2, 3, True]}, "bbox_2d [1, 2, 3, true]: not 4 numbers"),
        ({"bbox_2d": [0, 0, 1200, 900]}, "bbox_2d [0, 0, 1200, 900]: outside 0 to 1000"),
        ({"bbox_2d": [0, 0, float("nan"), 9]}, "bbox_2d [0, 0, NaN, 9]: outside 0 to 1000"),
        ({"bbox_2d": [500, 0, 100, 9]}, "bbox_2d [500, 0, 100, 9]: its corners are swapped"),
        ({"point_2d": [1, -2]}, "point_2d [1, -2]: outside 0 to 1000"),
        ({"point_2d": None}, "point_2d null: not 2 numbers"),
    ],
)
def test_invalid_regions_are_reported(item: Any, reason: str) -> None:
    assert find_regions(json.dumps([CAT, item])) == (REGIONS[:1], [reason])


@given(st.text('{}[]":, bbox_2d1e9-\\', max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    find_regions(text)


def test_nesting_without_end() -> None:
    assert find_regions('{"a":' * 3000 + "[" * 100_000) == ([], [])


def test_pixels_follow_the_picture() -> None:
    assert REGIONS[0].pixels(400, 200) == (40, 50, 200, 150)
    assert REGIONS[1].pixels(400, 200) == (120, 80)


def colours(image: PIL.Image.Image) -> set[str]:
    pixels = np.asarray(image).reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0).tolist()}


def test_boxes_are_drawn_where_they_are() -> None:
    image = PIL.Image.new("RGB", (400, 200), "white")
    drawn = draw(image, [Region((100, 250, 500, 750)), Region((900, 500))])
    assert colours(image) == {"#ffffff"}  # the caller's picture is left alone
    changed = (np.asarray(drawn) != 255).any(axis=2)
    rows, columns = np.nonzero(changed[:, :300])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 150, 40, 200)
    assert not changed[60:140, 50:190].any()  # an outline
    rows, columns = np.nonzero(changed[:, 300:])
    assert abs(rows.mean() - 100) < 1 and abs(columns.mean() + 300 - 360) < 1


def test_labels_have_colours_and_stay_inside() -> None:
    image = PIL.Image.new("RGB", (400, 200), "white")
    corners = [Region((0, 0, 1000, 1000), "a long label"), Region((999, 999), "nose"), Region((500, 500), "nose")]
    drawn = colours(draw(image, corners))
    assert set(COLOURS[:2]) <= drawn and COLOURS[2] not in drawn
    for size in ((1, 1), (7, 3000)):
        assert draw(PIL.Image.new("RGB", size), corners).size == size


# Other forms of JSON, and special tokens.


@pytest.mark.parametrize(
    ("item", "label"),
    [
        ({"label": "cat"}, "cat"),
        ({"text_content": "EXIT"}, "EXIT"),
        ({"text": "EXIT"}, "EXIT"),
        ({"name": "cat"}, "cat"),
        ({"name_zh": "米饭", "name_en": "Rice"}, "Rice"),
        ({"category": "food"}, "food"),
        ({"label": "person", "sub_label": "goalkeeper"}, "person, goalkeeper"),
        ({"sub_label": "goalkeeper"}, "goalkeeper"),
        ({"label": 7}, "7"),
        ({"label": None, "name": "cat"}, "cat"),
        ({"label": {"is": "no text"}}, ""),
        ({"colour": "black"}, ""),
    ],
)
def test_labels_have_many_names(item: Any, label: str) -> None:
    assert find_regions(json.dumps([{"bbox_2d": [1, 2, 3, 4], **item}])) == ([Region((1, 2, 3, 4), label)], [])


@pytest.mark.parametrize(
    ("item", "coordinates"),
    [
        ({"quad_2d": [1, 2, 30, 4, 30, 40, 1, 40]}, [(1, 2, 30, 4, 30, 40, 1, 40)]),
        ({"quad_2d": [[1, 2], [30, 4], [30, 40], [1, 40]]}, [(1, 2, 30, 4, 30, 40, 1, 40)]),
        ({"bbox_2d": [[1, 2], [3, 4]]}, [(1, 2, 3, 4)]),
        ({"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}, [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ({"point_2d": [[1, 2], [3, 4], [5, 6]]}, [(1, 2), (3, 4), (5, 6)]),
    ],
)
def test_values_may_be_nested(item: Any, coordinates: list[tuple[float, ...]]) -> None:
    assert find_regions(json.dumps(item)) == ([Region(numbers) for numbers in coordinates], [])


REF = "<|object_ref_start|>{}<|object_ref_end|>"
CAT_BOX = "<|box_start|>(100,250),(500,750)<|box_end|>"


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        (CAT_BOX, [Region((100, 250, 500, 750))]),
        (f"There is {REF.format('cat')}{CAT_BOX}.", REGIONS[:1]),
        (f"{REF.format(' cat ')}{CAT_BOX}{REF.format('nose')}<|box_start|>(300,400)<|box_end|>", REGIONS),
        (
            f"{REF.format('cat')}{CAT_BOX}<|box_start|>(1, 2),\n(3, 4)<|box_end|>",
            [REGIONS[0], Region((1, 2, 3, 4), "cat")],
        ),
        ("<|quad_start|>(1,2),(30,4),(30,40),(1,40)<|quad_end|>", [Region((1, 2, 30, 4, 30, 40, 1, 40))]),
        ("<|box_start|>[1.5, 2, 3, 4]<|box_end|>", [Region((1.5, 2, 3, 4))]),
        (f"{CAT_BOX}<|box_start|>(1,2),(3", [Region((100, 250, 500, 750))]),  # cut short
        ("cat(100,250),(500,750)", []),  # what is left without special tokens could be anything
    ],
)
def test_regions_are_found_between_special_tokens(text: str, regions: list[Region]) -> None:
    assert find_regions(text) == (regions, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<|box_start|>(1,2),(3,4),(5,6)<|box_end|>", "box (1,2),(3,4),(5,6): not 2 or 4 numbers"),
        ("<|box_start|>here<|box_end|>", "box here: not 2 or 4 numbers"),
        ("<|box_start|>(1,2) or (3,4)<|box_end|>", "box (1,2) or (3,4): not 2 or 4 numbers"),
        ("<|box_start|>(1,2),(3000,4)<|box_end|>", "box (1,2),(3000,4): outside 0 to 1000"),
        ("<|box_start|>(9,9),(3,4)<|box_end|>", "box (9,9),(3,4): its corners are swapped"),
        ("<|quad_start|>(1,2),(3,4)<|quad_end|>", "quad (1,2),(3,4): not 8 numbers"),
        (json.dumps({"quad_2d": [1, 2, 3, 4]}), "quad_2d [1, 2, 3, 4]: not 8 numbers"),
        (json.dumps({"bbox_2d": [0, 0, 10**400, 9]}), f"bbox_2d [0, 0, 1{'0' * 84}…: outside 0 to 1000"),
    ],
)
def test_an_invalid_region_does_not_refuse_the_others(text: str, reason: str) -> None:
    assert find_regions(f"{json.dumps(CAT)} {text} <|box_start|>(300,400)<|box_end|>") == (
        [REGIONS[0], Region((300, 400))],
        [reason],
    )


PIECES = [
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "(1,2)",
    "9" * 400,
]


@given(st.lists(st.sampled_from([*PIECES, "(", ",", "-", "cat", "\n"]), max_size=12))
def test_no_special_tokens_break_it(pieces: list[str]) -> None:
    find_regions("".join(pieces))


def test_a_quadrilateral_is_an_outline() -> None:
    drawn = draw(PIL.Image.new("RGB", (400, 200), "white"), [Region((500, 100, 900, 500, 500, 900, 100, 500))])
    changed = (np.asarray(drawn) != 255).any(axis=2)
    assert changed[20:24, 198:202].any() and changed[98:102, 38:44].any()
    assert not changed[100, 60:340].any() and not changed[:40, :150].any()


def test_a_label_may_be_any_text() -> None:
    regions, _ = find_regions('{"bbox_2d": [1, 2, 3, 4], "label": "\\ud800\\u0000\\n\\u202e"}')
    assert draw(PIL.Image.new("RGB", (40, 20)), regions).size == (40, 20)
