"""Boxes, quadrilaterals and points in answers, and drawing them on the picture.

Asked to locate things, Qwen3-VL writes JSON: `[{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}]`, or `point_2d` with two
numbers, or `quad_2d` with the eight of four corners. Qwen2-VL and many fine-tuned models write special tokens instead:
`<|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`, with one pair for a point, and
`<|quad_start|>` with four. Coordinates are thousandths of the picture's width and height, whatever its size.

Knows these formats and how to draw; nothing about models.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..errors import InputError
from ..output import whole_file

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
SCALE = 1000  # coordinate of the right and bottom edge
POINT, BOX, QUADRILATERAL = 2, 4, 8  # numbers
KEYS = {"bbox_2d": BOX, "point_2d": POINT, "quad_2d": QUADRILATERAL}
LABELS = ("label", "text_content", "text", "name", "name_en", "name_zh", "category")  # the first of them counts
SUB_LABEL = "sub_label"  # follows it
TOKENS = {"box": (POINT, BOX), "quad": (QUADRILATERAL,)}  # numbers between the start and end token of each name
SECTION = re.compile(r"<\|(object_ref|box|quad)_start\|>(.*?)<\|\1_end\|>", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SHOWN = 100  # characters of an invalid region
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Region:
    """A box (left, top, right, bottom), a point (x, y) or a quadrilateral (x1, y1, ..., x4, y4), and its label.

    Coordinates are thousandths of the picture.
    """

    coordinates: tuple[float, ...]
    label: str = ""

    @property
    def is_point(self) -> bool:
        return len(self.coordinates) == POINT

    @property
    def is_quadrilateral(self) -> bool:
        return len(self.coordinates) == QUADRILATERAL

    def pixels(self, width: int, height: int) -> tuple[float, ...]:
        """The coordinates in pixels, for a picture of this size."""
        sides = (width, height) * (len(self.coordinates) // 2)
        return tuple(value * side / SCALE for value, side in zip(self.coordinates, sides, strict=True))


def find_regions(text: str) -> tuple[list[Region], list[str]]:
    """The regions in an answer, in order, and one line for each that is invalid, which says what is wrong.

    JSON may be surrounded by text, in a code block or not, and cut short: objects that are complete count. Special
    tokens are only in an answer that was generated with `keep_special_tokens`.
    """
    regions: list[Region] = []
    refused: list[str] = []
    for source, value, counts, label in (*find_in_json(text), *find_between_tokens(text)):
        reason = reason_to_refuse(value, counts)
        if reason is None:
            regions.append(Region(tuple(map(float, value)), label))
        else:
            refused.append(f"{source if len(source) <= SHOWN else f'{source[:SHOWN]}…'}: {reason}")
    return regions, refused


Candidate = tuple[str, Any, tuple[int, ...], str]  # its text, its value, how many numbers that may be, its label


def find_in_json(text: str) -> Iterator[Candidate]:
    """Each value of a key of `KEYS`; several where the value is a list of them."""
    for item in find_objects(text):
        for key, count in KEYS.items():
            if key in item:
                for value in split_value(item[key], count):
                    yield f"{key} {json.dumps(value, ensure_ascii=False)}", value, (count,), label_of(item)


def split_value(value: Any, count: int) -> list[Any]:
    """The regions in a value: one, several as lists of `count` numbers, or one as a list of corners."""
    if not isinstance(value, list) or not value or not all(isinstance(item, list) for item in value):
        return [value]
    if all(len(item) == count for item in value):
        return value
    corners = [number for item in value for number in item]
    return [corners if len(corners) == count else value]


def label_of(item: dict[str, Any]) -> str:
    """What an object of JSON says it is."""
    names = [item[key] for key in LABELS if isinstance(item.get(key), str | int | float)][:1]
    return ", ".join(str(name) for name in (*names, item.get(SUB_LABEL)) if name not in (None, ""))


def find_between_tokens(text: str) -> Iterator[Candidate]:
    """What is between the special tokens; its label is the last object named before it."""
    label = ""
    for match in SECTION.finditer(text):
        name, content = match.groups()
        if name == "object_ref":
            label = content.strip()
            continue
        is_list = not NUMBER.sub("", content).strip("()[], \n")
        value = [float(number) for number in NUMBER.findall(content)] if is_list else content
        yield f"{name} {content.strip()}", value, TOKENS[name], label


def reason_to_refuse(value: Any, counts: tuple[int, ...]) -> str | None:
    """Why a value is no list of one of these numbers of coordinates; None if it is."""
    numbers = f"not {' or '.join(map(str, counts))} numbers"
    if not isinstance(value, list) or len(value) not in counts:
        return numbers
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return numbers
    if not all(0 <= number <= SCALE for number in value):
        return f"outside 0 to {SCALE}"
    if len(value) == BOX and (value[0] > value[2] or value[1] > value[3]):
        return "its corners are swapped"
    return None


def find_objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a text, nested ones included."""
    decoder = json.JSONDecoder(strict=False)
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1  # not JSON, or cut short: an inner object may be complete
        else:
            yield from walk_objects(value)
        position = text.find("{", end)


def walk_objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of a parsed JSON value, outer ones first."""
    pending = [value]
    while pending:
        value = pending.pop(0)
        if isinstance(value, dict):
            yield value
            pending = [*value.values(), *pending]
        elif isinstance(value, list):
            pending = [*value, *pending]


def draw(image: PIL.Image.Image, regions: Sequence[Region]) -> PIL.Image.Image:
    """A copy of an RGB picture with the regions drawn on it, one colour per label."""
    result = image.copy()
    canvas = PIL.ImageDraw.Draw(result)
    unit = max(2, round(max(image.size) / 250))  # the width of a line, in proportion to the picture
    font = PIL.ImageFont.load_default(size=max(10, 6 * unit))
    labels = list(dict.fromkeys(region.label for region in regions))
    for region in regions:
        colour = COLOURS[labels.index(region.label) % len(COLOURS)]
        coordinates = region.pixels(*image.size)
        if region.is_point:
            canvas.circle(coordinates, 2 * unit, fill=colour, outline="white", width=max(1, unit // 2))
        elif region.is_quadrilateral:
            canvas.polygon(coordinates, outline=colour, width=unit)
        else:
            canvas.rectangle(coordinates, outline=colour, width=unit)
        if region.label:
            draw_label(canvas, region.label, coordinates[0], coordinates[1], image.width, colour, font)
    return result


def save_drawing(path: Path, images: Sequence[PIL.Image.Image], text: str) -> tuple[int, list[str]]:
    """Draw an answer's valid regions on its picture and write that to a file.

    Returns:
        The number of regions drawn, and one line for each invalid region, as in `find_regions`.

    Raises:
        InputError: as `check_drawing`, an answer without valid regions, or a file that cannot be written.
    """
    check_drawing(path, len(images))
    regions, refused = find_regions(text)
    if not regions:
        if refused:
            raise InputError(f"the answer's {refused[0]}, nothing was drawn", "Ask again")
        raise InputError(
            "the answer names no boxes or points, nothing was drawn",
            "Ask for bbox_2d in JSON, or add --keep-special-tokens for a model that writes <|box_start|>",
        )
    try:
        with whole_file(path) as partial:
            draw(images[0], regions).save(partial)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})", "Choose another place") from error
    return len(regions), refused


def check_drawing(path: Path, images: int) -> None:
    """Refuse what `save_drawing` cannot do, before the question is asked.

    Raises:
        InputError: not exactly one picture, an unknown file format, or a file that exists, which may be the picture.
    """
    if images != 1:
        raise InputError(f"a drawing on {images} pictures", "Ask about exactly one picture")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: cannot write this image format", f"Use a name that ends in {', '.join(FORMATS)}")
    if os.path.lexists(path):
        raise InputError(f"{path}: already exists", "Choose another name, or delete it first")


def draw_label(
    canvas: PIL.ImageDraw.ImageDraw, label: str, x: float, y: float, image_width: int, colour: str, font: Any
) -> None:
    """Draw a label on a filled box: above (x, y) if there is room, and always inside the picture."""
    left, top, right, bottom = canvas.textbbox((0, 0), label, font=font)
    width, height = right - left, bottom - top
    pad = height // 4
    x = max(0, min(x, image_width - width - 2 * pad))
    y = max(0, y - height - 2 * pad)
    canvas.rectangle((x, y, x + width + 2 * pad, y + height + 2 * pad), fill=colour)
    canvas.text((x + pad - left, y + pad - top), label, fill="white", font=font)
