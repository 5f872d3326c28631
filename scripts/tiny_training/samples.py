"""What is trained on: which pictures, of which sizes, with which questions, and how that changes along the way.

Knows the curriculum. Does not know the tokenizer, patches or tensors. A sample is a function of its random stream.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from parity_tests.harness.cases import questions
from parity_tests.harness.cases import scenes as pictures
from parity_tests.harness.cases.questions import Turn
from parity_tests.harness.cases.scenes import DrawnScene, LabeledBox
from scripts.tiny_training import photographs

AREAS = {  # picture area in pixels, and how many samples make a batch
    "S": ((4096, 13_000), 48),
    "M": ((13_000, 37_000), 32),
    "L": ((37_000, 102_400), 14),
    "XL": ((102_400, 307_200), 6),
}


@dataclass(frozen=True)
class Stage:
    """A part of the training: it begins at `start` (share of all steps) and lasts until the next one."""

    start: float
    areas: dict[str, int]
    media: dict[str, int]
    scene_kinds: dict[str, int]
    many_kinds: dict[str, int]
    easy: float  # share of scenes that have only one or two shapes


FIRST_KINDS = {"describe": 1, "where": 2, "at": 2, "color": 1, "shape": 1, "count": 1}
ALL_KINDS = {
    "at": 12,
    "where": 14,
    "count": 9,
    "count_by": 20,
    "color": 10,
    "shape": 9,
    "exists": 16,
    "describe": 9,
    "relation": 14,
    "look": 4,
}
LAST_KINDS = ALL_KINDS | {"count": 16, "count_by": 30, "describe": 12, "shape": 6, "color": 7, "exists": 12}
MANY_KINDS = {"which": 40, "more": 14, "many_count": 16, "many_describe": 10, "many_at": 20}
LAST_MANY_KINDS = {"which": 55, "more": 14, "many_count": 14, "many_describe": 12, "many_at": 12}
ALL_MEDIA = {"scene": 43, "number": 14, "grid": 12, "many": 19, "photo": 4, "text": 4, "clip": 4}
LAST_MEDIA = {"scene": 42, "number": 10, "grid": 12, "many": 25, "photo": 4, "text": 5, "clip": 2}
STAGES = (
    Stage(0.00, {"S": 40, "M": 60}, {"scene": 78, "number": 17, "text": 5}, FIRST_KINDS, MANY_KINDS, easy=0.85),
    Stage(0.14, {"S": 35, "M": 52, "L": 13}, ALL_MEDIA, ALL_KINDS, MANY_KINDS, easy=0.3),
    Stage(0.40, {"S": 25, "M": 45, "L": 22, "XL": 8}, ALL_MEDIA, ALL_KINDS, MANY_KINDS, easy=0.1),
    Stage(0.68, {"S": 28, "M": 44, "L": 21, "XL": 7}, LAST_MEDIA, LAST_KINDS, LAST_MANY_KINDS, easy=0.1),
)
PACKED = 0.8  # share of samples whose questions share one picture prefix instead of following each other
WITHOUT_POSITIONS = 0.2  # share of samples whose position table is zeroed: only M-RoPE tells where things are


@dataclass(frozen=True)
class Medium:
    """One picture (a single frame) or one clip (an even number of frames)."""

    frames: tuple[Image.Image, ...]
    regions: tuple[LabeledBox, ...] = ()
    labelled: bool = True  # regions are known to be complete
    clip: bool = False


@dataclass(frozen=True)
class Sample:
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]
    system: bool
    packed: bool
    positions: bool


def stage_at(progress: float) -> Stage:
    return [stage for stage in STAGES if progress >= stage.start][-1]


def choose(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def random_size(rng: random.Random, area: tuple[int, int], max_aspect: float = 3.5) -> tuple[int, int]:
    pixels = math.exp(rng.uniform(math.log(area[0]), math.log(area[1])))
    aspect = 1.0 if rng.random() < 0.25 else math.exp(rng.uniform(-1, 1) * math.log(max_aspect))
    width, height = (max(56, round(math.sqrt(pixels * ratio))) for ratio in (aspect, 1 / aspect))
    if rng.random() < 0.4:
        width, height = (max(64, round(side / 32) * 32) for side in (width, height))
    return width, height


def draw_sample(rng: random.Random, stage: Stage, area: str) -> Sample:
    limits = AREAS[area][0]
    medium = choose(rng, stage.media)
    count = 1 if rng.random() < 0.1 else rng.randint(4, 7)
    if medium == "scene":
        media, ask = scene(rng, stage, limits)
    elif medium in ("number", "grid"):
        media, ask = digits(rng, limits, table=medium == "grid")
    elif medium == "many":
        media, ask = several(rng, stage, limits)
    elif medium == "photo":
        media, ask = photo(rng, limits)
    elif medium == "clip":
        media, ask = clip(rng)
    else:
        media, ask = (), lambda: questions.ask_text(rng)
    turns: dict[str, Turn] = {}
    for _ in range(20):  # some questions do not apply or repeat; a few pictures have less than `count`
        turn = ask()
        if turn is not None:
            turns.setdefault(turn.prompt, turn)
        if len(turns) == count:
            break
    return Sample(
        media=media,
        turns=tuple(turns.values()),
        system=rng.random() < 0.1,
        packed=rng.random() < PACKED,
        positions=rng.random() >= WITHOUT_POSITIONS,
    )


Asker = Callable[[], Turn | None]


def still(picture: DrawnScene) -> Medium:
    return Medium((picture.image,), picture.regions)


def scene(rng: random.Random, stage: Stage, limits: tuple[int, int]) -> tuple[tuple[Medium, ...], Asker]:
    easy = rng.random() < stage.easy
    count = rng.choice((1, 1, 2)) if easy else rng.choices((1, 2, 3, 4, 5), (2, 3, 3, 3, 1))[0]
    picture = pictures.draw_scene(rng, *random_size(rng, limits), count)
    return (still(picture),), lambda: questions.ask_scene(rng, picture, choose(rng, stage.scene_kinds))


def digits(rng: random.Random, limits: tuple[int, int], table: bool) -> tuple[tuple[Medium, ...], Asker]:
    width, height = random_size(rng, limits)
    rows, columns = pictures.max_digit_rows(height), rng.randint(1, pictures.max_digit_columns(width))
    if table and rows >= 2:
        picture = pictures.draw_digits(rng, width, height, rng.randint(2, rows), columns)
        return (still(picture),), lambda: questions.ask_grid(rng, picture, rng.choice(questions.GRID_KINDS))
    picture = pictures.draw_digits(rng, width, height, 1, columns)
    weights = {"number": 4, "digit_count": 1, "digit_first": 2, "digit_last": 2}
    return (still(picture),), lambda: questions.ask_number(picture, choose(rng, weights))


def several(rng: random.Random, stage: Stage, limits: tuple[int, int]) -> tuple[tuple[Medium, ...], Asker]:
    number = 3 if rng.random() < 0.25 else 2
    most = 2 if rng.random() < stage.easy else 3
    limits = min(limits[0], 37_000), min(limits[1], 65_000)
    scenes = [pictures.draw_scene(rng, *random_size(rng, limits), rng.randint(1, most)) for _ in range(number)]
    return tuple(map(still, scenes)), lambda: questions.ask_many(rng, scenes, choose(rng, stage.many_kinds))


def photo(rng: random.Random, limits: tuple[int, int]) -> tuple[tuple[Medium, ...], Asker]:
    name = "chelsea" if rng.random() < 0.2 else rng.choice(list(photographs.SUBJECTS))
    image = photographs.crop(rng, name, *random_size(rng, limits, max_aspect=2.0))
    return (Medium((image,), labelled=False),), lambda: photographs.ask_photograph(rng, image, name)


def clip(rng: random.Random) -> tuple[tuple[Medium, ...], Asker]:
    size = random_size(rng, (6000, 20_000), max_aspect=2.0)
    drawn = pictures.draw_clip(rng, *size, frame_count=rng.choice((4, 4, 6, 8)))
    medium = Medium(drawn.frames, labelled=False, clip=True)
    return (medium,), lambda: questions.ask_clip(drawn, rng.choice(questions.CLIP_KINDS))
