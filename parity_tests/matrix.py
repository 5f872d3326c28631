"""The matrix of cases: reads `cases.yaml` strictly and turns a case into pictures and questions.

Knows names, tiers, sizes and seeds. Does not know the model, its processor or what is compared. Everything drawn is a
function of the file's seed and the case, so a case can be replayed from its name.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qwen3vl_export.errors import ParityError

from .pictures import draw_clip, draw_digits, draw_scene, max_digit_columns, max_digit_rows

CASES = Path(__file__).with_name("cases.yaml")
PHOTOGRAPH = Path(__file__).parent / "media" / "chelsea.png"
TIERS = ("quick", "standard", "full")
Tier = Literal["quick", "standard", "full"]
PICTURE = re.compile(r"(?P<kind>[a-z]+) (?P<width>\d+)x(?P<height>\d+)( x(?P<frames>\d+))?( #(?P<seed>\d+))?")
GRID = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Prompt:
    """One conversation of one user turn: pictures in order, then the frames of a video, then the question."""

    images: tuple[Image.Image, ...]
    frames: tuple[Image.Image, ...]
    ask: str


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class PromptSpec(_Strict):
    """A prompt as written in the file."""

    images: list[str] = []
    video: str | None = None
    ask: str = ""


class Case(PromptSpec):
    """One line of the file."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    tier: Tier
    batch: list[PromptSpec] = []
    grids: list[str] = []
    random: int = 0
    between: list[int] = []

    @property
    def prompts(self) -> list[PromptSpec]:
        return self.batch or [self]

    @property
    def is_vision_only(self) -> bool:
        return bool(self.grids)

    @property
    def has_pictures(self) -> bool:
        return any(prompt.images or prompt.video for prompt in self.prompts)

    @property
    def has_video(self) -> bool:
        return any(prompt.video for prompt in self.prompts)

    @property
    def grid_thw(self) -> np.ndarray:
        """int64 [I, 3] of a vision-only case."""
        return np.array([parse(GRID, grid).groups() for grid in self.grids], np.int64)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [bool(self.batch), bool(self.grids), bool(self.ask)]
        if sum(kinds) != 1:
            raise ValueError("a case has exactly one of ask, batch and grids")
        if any(not prompt.ask for prompt in self.batch):
            raise ValueError("every prompt of a batch asks something")
        if bool(self.random) != bool(self.between):
            raise ValueError("random and between belong together")
        for grid in self.grids:
            parse(GRID, grid)
        for prompt in self.prompts:
            for picture in [*prompt.images, *([prompt.video] if prompt.video else [])]:
                parse(PICTURE, picture)
        return self


class Matrix(_Strict):
    """The whole file."""

    seed: int
    new_tokens: int = Field(gt=0)
    prefill_chunk: int = Field(gt=0)
    exam_questions: dict[str, int]
    accuracy_from: int
    cases: list[Case] = Field(min_length=1)

    def of_tier(self, tier: str) -> list[Case]:
        """Cases of a tier and the tiers below it, random ones drawn.

        Raises:
            ParityError: no such tier.
        """
        if tier not in TIERS:
            raise ParityError(f"no matrix named {tier}", f"Choose one of {', '.join(TIERS)}")
        wanted = TIERS[: TIERS.index(tier) + 1]
        cases = [one for case in self.cases if case.tier in wanted for one in self._expand(case)]
        names = [case.name for case in cases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ParityError(f"{CASES.name}: {twice[0]} appears twice", "A name is a test id")
        return cases

    def _expand(self, case: Case) -> list[Case]:
        if not case.random:
            return [case]
        found = []
        for index in range(case.random):
            rng = random.Random(f"{self.seed} {case.name} {index}")
            size = "{}x{}".format(*(rng.randint(*case.between) for _ in range(2)))
            update = {"name": f"{case.name}-{index}-{size}", "images": [f"drawn {size}"], "random": 0, "between": []}
            found.append(case.model_copy(update=update))
        return found

    def draw(self, case: Case) -> list[Prompt]:
        """The case's prompts with their pictures; one prompt unless it is a batch."""
        drawn = []
        for row, prompt in enumerate(case.prompts):
            images = [
                draw_picture(picture, f"{self.seed} {case.name} {row} {index}")
                for index, picture in enumerate(prompt.images)
            ]
            frames = draw_frames(prompt.video, f"{self.seed} {case.name} {row}") if prompt.video else ()
            drawn.append(Prompt(tuple(images), frames, prompt.ask))
        return drawn

    def random_pixels(self, case: Case, patch_dim: int) -> np.ndarray:
        """float32 [P, patch_dim] in [-1, 1] for a vision-only case."""
        rows = int(case.grid_thw.prod(1).sum())
        seed = np.random.SeedSequence([self.seed, *case.name.encode()])
        return np.random.default_rng(seed).uniform(-1, 1, (rows, patch_dim)).astype(np.float32)


def parse(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} does not read as {pattern.pattern}")
    return match


@cache
def photograph() -> Image.Image:
    return Image.open(PHOTOGRAPH).convert("RGB")


def draw_picture(text: str, default_seed: str) -> Image.Image:
    """The picture a line such as `drawn 150x211 #3` describes."""
    match = parse(PICTURE, text)
    size = int(match["width"]), int(match["height"])
    rng = random.Random(match["seed"] or default_seed)
    kinds: dict[str, Any] = {
        "drawn": drawn,
        "digits": digits,
        "noise": noise,
        "photo": photo,
        "gray": gray,
        "rgba": rgba,
    }
    if match["kind"] not in kinds:
        raise ParityError(f"{CASES.name}: no picture kind {match['kind']}", f"Choose one of {', '.join(kinds)}")
    image: Image.Image = kinds[match["kind"]](rng, size)
    return image


def draw_frames(text: str, default_seed: str) -> tuple[Image.Image, ...]:
    """The frames a line such as `clip 96x96 x4` describes."""
    match = parse(PICTURE, text)
    if match["kind"] != "clip" or not match["frames"]:
        raise ParityError(f"{CASES.name}: {text!r} is no video", "Write: clip WIDTHxHEIGHT xFRAMES")
    rng = random.Random(match["seed"] or default_seed)
    return draw_clip(rng, int(match["width"]), int(match["height"]), int(match["frames"])).frames


def drawn(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return draw_scene(rng, *size, count=rng.randint(2, 4)).image


def digits(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return draw_digits(rng, *size, rows=max_digit_rows(size[1]), columns=max_digit_columns(size[0])).image


def noise(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Every pixel random: nothing smooth for a wrong resize filter to hide behind."""
    pixels = np.random.default_rng(rng.getrandbits(64)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def photo(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    image = photograph()
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def gray(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return photo(rng, size).convert("L")


def rgba(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """The photograph fading out to the right."""
    image = photo(rng, size).convert("RGBA")
    fade = np.linspace(255, 0, size[0]).astype(np.uint8)
    image.putalpha(Image.fromarray(np.broadcast_to(fade, (size[1], size[0])).copy()))
    return image


@cache
def load_matrix(path: Path = CASES) -> Matrix:
    """Read a matrix file.

    Raises:
        ParityError: the file says something a matrix cannot say.
    """
    try:
        return Matrix.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except yaml.YAMLError as error:
        raise ParityError(
            f"{path.name}: not YAML: {' '.join(str(error).split())}", "Quote what holds a ? or a :"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ParityError(
            f"{path.name}: {where}: {first['msg']}", "See the top of the file for what a line may say"
        ) from error
