"""Drawn pictures: scenes of coloured shapes, digits, short clips of one moving shape.

Knows how to draw and what was drawn; nothing about questions, patches or tensors. Everything is a function of the
`random.Random` passed in, so a seed reproduces a picture.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (140, 50, 170),
    "orange": (242, 135, 25),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
CORNERS = (0, 2, 6, 8)  # indices into POSITIONS
MOTIONS = ("left", "right", "up", "down", "still")

MIN_DIGIT_PITCH = 32  # pixels between digit centers: one visual token, so that digits stay legible
MIN_ROW_PITCH = 40
MAX_DIGIT_SIZE = 72

Rgb = tuple[int, int, int]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; `cell` indexes POSITIONS."""

    cell: int
    color: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def phrase(self) -> str:
        return f"{article(self.color)} {self.name}"

    @property
    def position(self) -> str:
        return POSITIONS[self.cell]


@dataclass(frozen=True)
class LabeledBox:
    """Where a shape or digit was drawn: (left, top, right, bottom) in pixels. Exactly one of the labels is set."""

    box: tuple[float, float, float, float]
    thing: Thing | None = None
    digit: int | None = None


@dataclass(frozen=True)
class DrawnScene:
    """A picture with a record of what it shows: shapes or digits."""

    image: Image.Image
    things: tuple[Thing, ...] = ()  # ordered by cell
    rows: tuple[str, ...] = ()  # digits, one string per line
    regions: tuple[LabeledBox, ...] = ()


@dataclass(frozen=True)
class Clip:
    """A shape that moves over a fixed background; frames are half a second apart."""

    frames: tuple[Image.Image, ...]
    color: str
    shape: str
    motion: str


def draw_background(rng: random.Random, width: int, height: int) -> tuple[Image.Image, bool]:
    """A plain or noisy background and whether it is dark."""
    dark = rng.random() < 0.4
    level = rng.randint(*((0, 55) if dark else (195, 255)))
    color = tuple(min(255, max(0, level + rng.randint(-12, 12))) for _ in range(3))
    image = Image.new("RGB", (width, height), color)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 7), (height, width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image, dark


def shade(rng: random.Random, color: str) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-14, 14))) for value in COLORS[color])
    return red, green, blue


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Rgb) -> None:
    if shape == "circle":
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    elif shape == "square":
        half = radius * 0.9
        draw.rectangle([x - half, y - half, x + half, y + half], fill=fill)
    elif shape == "triangle":
        base = y + radius * 0.85
        draw.polygon([(x, y - radius), (x - radius, base), (x + radius, base)], fill=fill)
    elif shape == "cross":
        arm = radius * 0.34
        draw.rectangle([x - radius, y - arm, x + radius, y + arm], fill=fill)
        draw.rectangle([x - arm, y - radius, x + arm, y + radius], fill=fill)
    elif shape == "ring":
        ring_width = max(2, round(radius * 0.36))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=fill, width=ring_width)
    else:
        raise ValueError(f"unknown shape {shape!r}; one of {SHAPES}")


def choose_things(rng: random.Random, cells: list[int]) -> tuple[Thing, ...]:
    """Distinct colour and shape pairs for `cells`; often with a colour or a shape repeated, so counts vary."""
    every = [(color, shape) for color in COLORS for shape in SHAPES]
    pairs = rng.sample(every, len(cells))
    if len(cells) >= 2 and rng.random() < 0.4:
        attribute = rng.randrange(2)
        alike = [pair for pair in every if pair[attribute] == pairs[0][attribute] and pair != pairs[0]]
        repeats = rng.sample(alike, rng.randint(1, min(len(cells) - 1, 3)))
        rest = [pair for pair in pairs[1:] if pair not in repeats]
        pairs = [pairs[0], *repeats, *rest][: len(cells)]
    return tuple(sorted((Thing(cell, *pair) for cell, pair in zip(cells, pairs, strict=True)), key=lambda t: t.cell))


def draw_scene(rng: random.Random, width: int, height: int, count: int) -> DrawnScene:
    """`count` shapes, one per cell of a 3x3 layout; small pictures use the four corners only."""
    image, _ = draw_background(rng, width, height)
    draw = ImageDraw.Draw(image)
    small = width * height < 13000 or min(width, height) < 100
    cells = rng.sample(CORNERS if small else range(9), min(count, 4) if small else count)
    things = choose_things(rng, cells)
    per_side = 2 if small else 3
    cell_width, cell_height = width / per_side, height / per_side
    regions = []
    for thing in things:
        row, column = divmod(thing.cell, 3)
        if small:
            row, column = row // 2, column // 2
        radius = max(6, min(cell_width, cell_height) * rng.uniform(0.29, 0.45))
        room_x = min(0.12 * cell_width, max(0, cell_width / 2 - radius))
        room_y = min(0.12 * cell_height, max(0, cell_height / 2 - radius))
        x = (column + 0.5) * cell_width + rng.uniform(-1, 1) * room_x
        y = (row + 0.5) * cell_height + rng.uniform(-1, 1) * room_y
        draw_shape(draw, thing.shape, x, y, radius, shade(rng, thing.color))
        regions.append(LabeledBox((x - radius, y - radius, x + radius, y + radius), thing=thing))
    return DrawnScene(image, things=things, regions=tuple(regions))


def max_digit_columns(width: int) -> int:
    return max(1, min(4, width // MIN_DIGIT_PITCH))


def max_digit_rows(height: int) -> int:
    return max(1, min(3, height // MIN_ROW_PITCH))


def draw_digits(rng: random.Random, width: int, height: int, rows: int, columns: int) -> DrawnScene:
    """Random digits: several rows fill the picture as a table, a single row is one number near the middle."""
    image, dark = draw_background(rng, width, height)
    draw = ImageDraw.Draw(image)
    size = min(height / rows * 0.85, width / columns * 1.35, MAX_DIGIT_SIZE) * rng.uniform(0.8, 1.0)
    font = ImageFont.load_default(round(size))
    fill = COLORS[rng.choice(list(COLORS))] if rng.random() < 0.4 else ((240,) * 3 if dark else (15,) * 3)
    pitch_x, pitch_y = width / columns, height / rows
    left, top = 0.0, 0.0
    if rows == 1:
        pitch_x = min(pitch_x, size * rng.uniform(0.62, 0.95))
        room_x, room_y = max(0.0, width - columns * pitch_x), max(0.0, height - size)
        left = room_x / 2 + rng.uniform(-0.2, 0.2) * room_x
        top = rng.uniform(-0.2, 0.2) * room_y
    lines = tuple("".join(rng.choice("0123456789") for _ in range(columns)) for _ in range(rows))
    regions = []
    for row, line in enumerate(lines):
        for column, digit in enumerate(line):
            x, y = left + (column + 0.5) * pitch_x, top + (row + 0.5) * pitch_y
            draw.text((x, y), digit, fill=fill, font=font, anchor="mm")
            box = (x - size * 0.28, y - size * 0.36, x + size * 0.28, y + size * 0.36)
            regions.append(LabeledBox(box, digit=int(digit)))
    return DrawnScene(image, rows=lines, regions=tuple(regions))


def draw_clip(rng: random.Random, width: int, height: int, frame_count: int) -> Clip:
    """One shape that crosses the picture in a straight line, or does not move."""
    color, shape, motion = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(MOTIONS)
    radius = max(8, min(width, height) * rng.uniform(0.15, 0.24))
    background, _ = draw_background(rng, width, height)
    start, end, across = rng.uniform(0.12, 0.3), rng.uniform(0.7, 0.88), rng.uniform(0.25, 0.75)
    fill = shade(rng, color)
    frames = []
    for index in range(frame_count):
        t = start + (end - start) * index / (frame_count - 1)
        x, y = {
            "left": (1 - t, across),
            "right": (t, across),
            "up": (across, 1 - t),
            "down": (across, t),
            "still": (start + 0.2, across),
        }[motion]
        frame = background.copy()
        draw_shape(ImageDraw.Draw(frame), shape, x * width, y * height, radius, fill)
        frames.append(frame)
    return Clip(tuple(frames), color, shape, motion)
