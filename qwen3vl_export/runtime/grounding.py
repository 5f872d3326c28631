"""Boxes and points in answers, and drawing them on the picture.

Asked to locate things, Qwen3-VL writes JSON: `[{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}]`, or `point_2d` with two
numbers. Coordinates are thousandths of the picture's width and height, whatever its size.

Knows these formats and how to draw; nothing about models.
"""

from __future__ import annotations

import json
import math
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
COUNTS = {"bbox_2d": 4, "point_2d": 2}
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Region:
    """A box (left, top, right, bottom) or a point (x, y) in thousandths of the picture, and its label."""

    coordinates: tuple[float, ...]
    label: str = ""

    @property
    def is_point(self) -> bool:
        return len(self.coordinates) == COUNTS["point_2d"]

    def pixels(self, width: int, height: int) -> tuple[float, ...]:
        """The coordinates in pixels, for a picture of this size."""
        sides = (width, height) * (len(self.coordinates) // 2)
        return tuple(value * side / SCALE for value, side in zip(self.coordinates, sides, strict=True))


def find_regions(text: str) -> tuple[list[Region], list[str]]:
    """The regions in an answer, in order, and one line for each that is invalid.

    The JSON may be surrounded by text, in a code block or not, and cut short: objects that are complete count.
    """
    regions: list[Region] = []
    refused: list[str] = []
    for item in find_objects(text):
        for key, count in COUNTS.items():
            if key in item:
                value = item[key]
                reason = reason_to_refuse(value, count)
                if reason is None:
                    regions.append(Region(tuple(map(float, value)), str(item.get("label", ""))))
                else:
                    refused.append(f"{key} {json.dumps(value, ensure_ascii=False)}: {reason}")
    return regions, refused


def reason_to_refuse(value: Any, count: int) -> str | None:
    """Why a value is not a box or point of `count` numbers; None if it is."""
    if not isinstance(value, list) or len(value) != count:
        return f"not {count} numbers"
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return f"not {count} numbers"
    if not all(math.isfinite(number) and 0 <= number <= SCALE for number in value):
        return f"outside 0 to {SCALE}"
    if count == COUNTS["bbox_2d"] and (value[0] > value[2] or value[1] > value[3]):
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
        else:
            canvas.rectangle(coordinates, outline=colour, width=unit)
        if region.label:
            draw_label(canvas, region.label, coordinates[0], coordinates[1], image.width, colour, font)
    return result


def save_drawing(path: Path, images: Sequence[PIL.Image.Image], text: str) -> int:
    """Draw an answer's regions on its picture and write that to a file; the number of regions.

    Raises:
        InputError: not exactly one picture, an answer without regions or with an invalid one, or a file that cannot be
            written.
    """
    check_drawing(path, len(images))
    regions, refused = find_regions(text)
    if refused:
        raise InputError(f"the answer's {refused[0]}", "Ask again")
    if not regions:
        raise InputError("the answer names no boxes or points, nothing was drawn", "Ask for bbox_2d in JSON")
    try:
        with whole_file(path) as partial:
            draw(images[0], regions).save(partial)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})", "Choose another place") from error
    return len(regions)


def check_drawing(path: Path, images: int) -> None:
    """Refuse what `save_drawing` cannot do, before the question is asked.

    Raises:
        InputError: not exactly one picture, or an unknown file format.
    """
    if images != 1:
        raise InputError(f"a drawing on {images} pictures", "Ask about exactly one picture")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: cannot write this image format", f"Use a name that ends in {', '.join(FORMATS)}")


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
