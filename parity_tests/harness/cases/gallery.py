"""Drawn pictures with captions, for models that embed or rerank; what was drawn decides which caption fits a picture.

Knows scenes and their descriptions; nothing about models. The gallery's streams of random numbers begin with "gallery",
those of the training with "train": no picture is in both.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from parity_tests.harness.cases.scenes import COLORS, CORNERS, POSITIONS, SHAPES, DrawnScene, Thing, draw_scene

SIZES = ((64, 64), (96, 64), (128, 128), (160, 96), (96, 160), (192, 192))  # width, height
MOST_THINGS = 3
PICTURES = 100
SEARCH = "Retrieve images relevant to the user's query."  # the instruction of a caption


@dataclass(frozen=True)
class Caption:
    """Shapes that a picture is said to show, and where, if `placed`."""

    things: tuple[Thing, ...]
    placed: bool = True

    @property
    def text(self) -> str:
        phrases = [f"{thing.phrase} in the {thing.position}" if self.placed else thing.phrase for thing in self.things]
        return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)

    def fits(self, scene: DrawnScene) -> bool:
        """Whether the picture shows all of it."""
        shown = {self._said_of(thing) for thing in scene.things}
        return shown >= {self._said_of(thing) for thing in self.things}

    def _said_of(self, thing: Thing) -> tuple[object, ...]:
        return (thing.name, thing.cell) if self.placed else (thing.name,)


@dataclass(frozen=True)
class GalleryPicture:
    image: Image.Image
    caption: str


def gallery(count: int = PICTURES) -> list[GalleryPicture]:
    """Pictures whose captions say all that they show, each fitting only its own."""
    scenes: list[DrawnScene] = []
    for index in range(count):
        rng, scene = random.Random(f"gallery-{index}"), None
        while scene is None or any(Caption(a.things).fits(b) for c in scenes for a, b in ((scene, c), (c, scene))):
            scene = draw_captioned_scene(rng)
        scenes.append(scene)
    return [GalleryPicture(scene.image, Caption(scene.things).text) for scene in scenes]


def draw_captioned_scene(rng: random.Random, most: int = MOST_THINGS) -> DrawnScene:
    return draw_scene(rng, *rng.choice(SIZES), count=rng.randint(1, most))


def change(rng: random.Random, caption: Caption) -> Caption:
    """The caption with another colour, shape or place of one of its shapes."""
    things = list(caption.things)
    index = rng.randrange(len(things))
    thing, what = things[index], rng.choice(("color", "shape", "cell") if caption.placed else ("color", "shape"))
    cells = CORNERS if {thing.cell for thing in things} <= {*CORNERS} else range(len(POSITIONS))
    values: dict[str, list[Any]] = {"color": list(COLORS), "shape": list(SHAPES), "cell": list(cells)}
    things[index] = replace(
        thing, **{what: rng.choice([value for value in values[what] if value != getattr(thing, what)])}
    )
    return replace(caption, things=tuple(things))
