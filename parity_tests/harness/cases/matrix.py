"""The matrix of cases: reads `cases.yaml` strictly and turns a case into pictures and questions.

Knows names, tiers, sizes and seeds; nothing about the model or what is compared, and only the pixel budget of the
processor. Every picture is a function of the file's seed, the case and that budget, so a case can be replayed from its
name.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import yaml
from PIL import Image
from pydantic import Field, ValidationError, model_validator

from qwen3vl_export.contract import TIERS, TIERS_INCLUDED
from qwen3vl_export.errors import ParityError

from ..strict import Strict, describe_problem
from .picture_kinds import PICTURE, RANDOM_SIZE, PictureSource, draw_frames, draw_picture, parse

CASES = Path(__file__).with_name("cases.yaml")
Tier = Literal["quick", "release", "standard", "full"]
RELEASE: Tier = "release"
Edge = Literal["fewest", "most"]  # of a pixel budget
GRID = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Prompt:
    """One conversation of one user turn: pictures in order, then the frames of a video, then the question."""

    images: tuple[PictureSource, ...]
    frames: tuple[Image.Image, ...]
    ask: str


class PromptSpec(Strict):
    """A prompt as written in the file."""

    images: list[str] = Field(default_factory=list)
    video: str | None = None
    words: int = 0
    ask: str = ""

    @property
    def pictures(self) -> list[str]:
        """Images, then the video if there is one, as written."""
        return [*self.images, *([self.video] if self.video else [])]

    def with_sizes(self, sizes: Iterator[str]) -> Self:
        """The prompt with every size that was left open taken from `sizes`."""

        def fill(picture: str) -> str:
            return picture.replace(RANDOM_SIZE, next(sizes)) if RANDOM_SIZE in picture else picture

        return self._with_pictures(fill)

    def scaled(self, factor: float) -> Self:
        """The prompt with every side of a picture this many times as long."""

        def scale(picture: str) -> str:
            sides = parse(PICTURE, picture).group("width", "height")
            size = "x".join(str(max(1, round(int(side) * factor))) for side in sides)
            return picture.replace("x".join(sides), size, 1)

        return self._with_pictures(scale)

    def _with_pictures(self, change: Callable[[str], str]) -> Self:
        images = [change(picture) for picture in self.images]
        return self.model_copy(update={"images": images, "video": change(self.video) if self.video else None})


class Case(PromptSpec):
    """One line of the file."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    tier: Tier
    batch: list[PromptSpec] = Field(default_factory=list)
    grids: list[str] = Field(default_factory=list)
    random: int = 0
    between: list[int] = Field(default_factory=list)
    of: Edge | None = None
    new_tokens: int = 0

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
        has_open_size = any(RANDOM_SIZE in picture for prompt in self.prompts for picture in prompt.pictures)
        if not bool(self.random) == bool(self.between) == has_open_size:
            raise ValueError(f"random, between and pictures of {RANDOM_SIZE} belong together")
        if self.of and not self.has_pictures:
            raise ValueError("of is for pictures")
        for grid in self.grids:
            parse(GRID, grid)
        for prompt in self.prompts:
            for picture in prompt.pictures:
                parse(PICTURE, picture)
        return self


class PixelBudget(Strict):
    """The fewest and the most pixels that a checkpoint's processor makes of a picture."""

    fewest: int = Field(gt=0)
    most: int = Field(gt=0)


class Matrix(Strict):
    """The whole file.

    Attributes:
        pixels: the budget that sizes which are meant relative to one are written for.
        checkpoint: the budget of the checkpoint that is compared; None is the same.
    """

    seed: int
    pixels: PixelBudget
    checkpoint: PixelBudget | None = None
    most_image_tokens: int = Field(gt=0)
    new_tokens: int = Field(gt=0)
    forced_tokens: int = Field(gt=0)
    prefill_chunk: int = Field(gt=0)
    prefill_calls: int = Field(gt=0)
    exam_questions: dict[str, int]
    accuracy_from: int
    cases: list[Case] = Field(min_length=1)

    def of_tier(self, tier: str) -> list[Case]:
        """Cases of a tier and the tiers it includes, random cases expanded, sizes fitted to the checkpoint.

        Raises:
            ParityError: no such tier.
        """
        if tier not in TIERS:
            raise ParityError(f"no matrix named {tier}", f"Choose one of {', '.join(TIERS)}")
        tiers = TIERS_INCLUDED[tier]
        cases = [self.fit(expanded) for case in self.cases if case.tier in tiers for expanded in self._expand(case)]
        names = [case.name for case in cases]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ParityError(f"{CASES.name}: {twice[0]} appears twice", "A name is a test id")
        return cases

    def for_checkpoint(self, fewest: int, most: int) -> Matrix:
        """The matrix for a checkpoint whose processor makes between `fewest` and `most` pixels of a picture."""
        return self.model_copy(update={"checkpoint": PixelBudget(fewest=fewest, most=most)})

    def fit(self, case: Case) -> Case:
        """The case with its sizes in pixels: those meant relative to a budget, of the checkpoint's."""
        if case.of is None:
            return case
        budget = self.checkpoint or self.pixels
        factor = math.sqrt(getattr(budget, case.of) / getattr(self.pixels, case.of))
        batch = [prompt.scaled(factor) for prompt in case.batch]
        return case.scaled(factor).model_copy(update={"of": None, "batch": batch})

    def _expand(self, case: Case) -> list[Case]:
        if not case.random:
            return [case]
        cases = []
        for index in range(case.random):
            rng = random.Random(f"{self.seed} {case.name} {index}")
            open_sizes = sum(RANDOM_SIZE in picture for prompt in case.prompts for picture in prompt.pictures)
            sizes = ["{}x{}".format(*(rng.randint(*case.between) for _ in range(2))) for _ in range(open_sizes)]
            unused = iter(sizes)
            batch = [prompt.with_sizes(unused) for prompt in case.batch]
            single = case.with_sizes(unused)
            update = {"name": "-".join([case.name, str(index), *sizes]), "random": 0, "between": [], "batch": batch}
            cases.append(case.model_copy(update={**update, "images": single.images, "video": single.video}))
        return cases

    def chunk_of(self, length: int) -> int:
        """How many of a prompt's tokens a call reads, where the prompt is read in pieces."""
        return max(self.prefill_chunk, -(-length // self.prefill_calls))

    def tokens_of(self, case: Case) -> int:
        """How many tokens are decoded after a case's prompt."""
        return case.new_tokens or self.new_tokens

    def forced_text(self, case: Case) -> Iterator[str]:
        """An endless series of sentences to follow a case's prompt: the questions of all cases but the large ones in
        turn, this case's first."""
        sources = [source for source in self.cases if source.tier != RELEASE]
        start = next((index for index, source in enumerate(sources) if case.name.startswith(source.name)), 0)
        ordered = sources[start:] + sources[:start]
        return cycle([prompt.ask for source in ordered for prompt in source.prompts if prompt.ask])

    def passage(self, case: Case, words: int) -> str:
        """So many words of `forced_text`."""
        return " ".join(islice((word for sentence in self.forced_text(case) for word in sentence.split()), words))

    def draw(self, case: Case) -> list[Prompt]:
        """The case's prompts with their pictures; a single prompt unless the case is a batch."""
        prompts = []
        for row, prompt in enumerate(self.fit(case).prompts):
            images = [
                draw_picture(picture, f"{self.seed} {case.name} {row} {index}")
                for index, picture in enumerate(prompt.images)
            ]
            frames = draw_frames(prompt.video, f"{self.seed} {case.name} {row}") if prompt.video else ()
            prompts.append(Prompt(tuple(images), frames, self.question(case, prompt)))
        return prompts

    def question(self, case: Case, prompt: PromptSpec) -> str:
        """The text of one of a case's prompts."""
        return f"{self.passage(case, prompt.words)} {prompt.ask}" if prompt.words else prompt.ask

    def random_pixels(self, case: Case, patch_dim: int) -> np.ndarray:
        """float32 [P, patch_dim] in [-1, 1] for a vision-only case."""
        rows = int(case.grid_thw.prod(1).sum())
        seed = np.random.SeedSequence([self.seed, *case.name.encode()])
        return np.random.default_rng(seed).uniform(-1, 1, (rows, patch_dim)).astype(np.float32)


@cache
def load_matrix(path: Path = CASES) -> Matrix:
    """Read a matrix file.

    Raises:
        ParityError: the file is not a valid matrix.
    """
    try:
        return Matrix.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except yaml.YAMLError as error:
        raise ParityError(f"{path.name}: {describe_problem(error)}", "Quote what holds a ? or a :") from error
    except ValidationError as error:
        hint = "See the top of the file for what a line may say"
        raise ParityError(f"{path.name}: {describe_problem(error)}", hint) from error
