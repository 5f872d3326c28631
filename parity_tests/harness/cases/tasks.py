"""Tasks: questions with accepted answers, that both sides are asked.

A task is a list of questions in memory. The held-out exam (`exam.py`) draws its own; users' lie in files
(`task_files.py`). Knows what a question says; nothing about models, and scores no answer (`judging/scores.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from .matrix import Prompt

Metric = Literal["exact", "contains", "anls", "choice", "iou"]
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NEW_TOKENS = 128  # of an answer, by default


@dataclass(frozen=True)
class PictureFile:
    """A picture that is read when it is asked about; `size` is that of the picture as it is shown."""

    path: Path
    size: Size


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        task: the name of its task.
        id: unique there.
        kind: what is asked for, such as `where`; scores are told by kind as well.
        choices: options that are shown below the question, a letter before each; for the metric `choice`.
        boxes: accepted ones in pixels of the only picture, for the metric `iou`.
        frames: of a video, half a second apart.
        new_tokens: at most, of an answer.
        where: the file and line it is from.
    """

    task: str
    id: str
    kind: str
    images: tuple[Image.Image | PictureFile, ...]
    text: str
    answers: tuple[str, ...]
    metric: Metric = "exact"
    choices: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    frames: tuple[Image.Image, ...] = ()
    new_tokens: int = NEW_TOKENS
    where: str = ""

    @property
    def name(self) -> str:
        """Unique among the questions of all tasks, and different from the names of cases."""
        return f"{self.task}/{self.id}"

    @property
    def sizes(self) -> list[Size]:
        return [image.size for image in self.images]

    @property
    def ask(self) -> str:
        """The text of the prompt."""
        options = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
        return "\n".join([self.text, *options])

    @property
    def prompt(self) -> Prompt:
        """The question with its pictures; those in files are read."""
        images = (image.path.read_bytes() if isinstance(image, PictureFile) else image for image in self.images)
        return Prompt(tuple(images), self.frames, self.ask)


@dataclass(frozen=True)
class Task:
    """Questions under a name.

    Attributes:
        sha256: of the file and its pictures; None of what is drawn.
    """

    name: str
    questions: tuple[Question, ...] = field(repr=False)
    sha256: str | None = None
