"""Task files: JSON lines, one question each, read strictly and as a whole before anything is asked.

    {"images": ["invoices/17.png"], "question": "What is the total?", "answers": ["12.50"], "metric": "anls"}

Pictures lie in the file's folder or below it; of each only the header is decoded here. Whatever is wrong is one line
that names the file and the line. Knows the format; nothing about how answers are scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import PIL.Image
from pydantic import Field, ValidationError

from qwen3vl_export.errors import InputError, ParityError, os_reason
from qwen3vl_export.json_form import parse
from qwen3vl_export.runtime.pictures.decode_limits import check_size
from qwen3vl_export.runtime.pictures.images import decoding, open_encoded

from ..strict import Strict, describe_problem
from .tasks import LETTERS, NEW_TOKENS, Box, Metric, PictureFile, Question, Task

FORMAT = "docs/tasks.md has the format"
MOST_BYTES = 64 << 20  # of a file
MOST_QUESTIONS = 100_000
MOST_PICTURES = 64  # of a question
MOST_PICTURE_BYTES = 256 << 20
LONGEST_TEXT = 100_000  # characters of a question
MOST_NEW_TOKENS = 4096
BOX = 4  # numbers
ORIENTATION, QUARTER_TURNED = 0x0112, 5  # EXIF: from this value on width and height are exchanged
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
RESERVED = "exam"  # the name of the held-out exam


class TaskLine(Strict):
    """A line of a file."""

    id: str | None = Field(default=None, pattern=r"^[\w.:-]{1,100}$")
    kind: str = Field(default="all", pattern=r"^[\w][\w .:-]{0,59}$")
    images: list[str] = Field(default_factory=list, max_length=MOST_PICTURES)
    question: str = Field(min_length=1, max_length=LONGEST_TEXT)
    answers: list[str] = Field(default_factory=list)
    choices: list[str] = Field(default_factory=list, max_length=len(LETTERS))
    boxes: list[list[float]] = Field(default_factory=list)
    metric: str
    max_new_tokens: int = Field(default=NEW_TOKENS, ge=1, le=MOST_NEW_TOKENS)


def load_tasks(paths: Sequence[Path]) -> tuple[Task, ...]:
    """The tasks of several files, each under the name of its file.

    Raises:
        ParityError: a file cannot be used, or two have the same name.
    """
    tasks = [load_task(path) for path in paths]
    names = [task.name for task in tasks]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            raise ParityError(f"{path}: two task files are called {name}", "Rename one")
    return tuple(tasks)


def load_task(path: Path) -> Task:
    """The task of a file.

    Raises:
        ParityError: the file, a line or a picture cannot be used.
    """
    if path.suffix != ".jsonl":
        raise ParityError(f"{path}: not a task file, which ends in .jsonl", FORMAT)
    if path.stem == RESERVED or not path.stem.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ParityError(
            f"{path}: {path.stem} cannot be the name of a task", "Rename the file, with letters and digits"
        )
    data = read_limited(path, MOST_BYTES, str(path))
    digest = hashlib.sha256(data)
    pictures: dict[Path, PictureFile] = {}
    questions: dict[str, Question] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        question = question_of(parse_line(line, where), path, number, pictures, digest)
        if question.id in questions:
            raise ParityError(f"{where}: id {question.id} is also in {questions[question.id].where}", "Give it another")
        questions[question.id] = question
        if len(questions) > MOST_QUESTIONS:
            raise ParityError(f"{where}: more than {MOST_QUESTIONS:,} questions", "Split the file")
    if not questions:
        raise ParityError(f"{path}: has no questions", FORMAT)
    return Task(path.stem, tuple(questions.values()), digest.hexdigest())


def read_limited(path: Path, limit: int, name: str) -> bytes:
    """The bytes of a file of at most so many, called `name` in errors.

    Raises:
        ParityError: it cannot be read, or is larger.
    """
    try:
        if not path.is_file():
            raise ParityError(f"{name}: no such file", "Check the path")
        if path.stat().st_size > limit:
            raise ParityError(f"{name}: larger than {limit >> 20} MB", "Split it, or make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise ParityError(f"{name}: cannot be read ({os_reason(error)})", "Check the path") from error


def parse_line(line: bytes, where: str) -> TaskLine:
    try:
        values = parse(line.decode("utf-8-sig"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ParityError(f"{where}: not JSON ({' '.join(str(error).split())})", FORMAT) from None
    if not isinstance(values, dict):
        raise ParityError(f"{where}: not a JSON object", FORMAT)
    try:
        return TaskLine.model_validate(values)
    except ValidationError as error:
        raise ParityError(f"{where}: {describe_problem(error)}", FORMAT) from None


def question_of(line: TaskLine, path: Path, number: int, pictures: dict[Path, PictureFile], digest: Any) -> Question:
    """The question of a file's line.

    Args:
        pictures: those opened before, by path; new ones are added, and their bytes to the digest.

    Raises:
        ParityError: a metric without what it needs, or a picture that cannot be used.
    """
    where = f"{path}:{number}"
    metric = metric_of(line.metric, where)
    images = tuple(picture_of(name, where, path.parent, pictures, digest) for name in line.images)
    if metric == "iou":
        if len(images) != 1 or line.answers or line.choices:
            raise ParityError(f"{where}: iou is for boxes on exactly one picture", FORMAT)
    elif line.boxes:
        raise ParityError(f"{where}: boxes are for the metric iou", FORMAT)
    if not (line.boxes if metric == "iou" else [answer for answer in line.answers if answer.strip()]):
        raise ParityError(f"{where}: no {'boxes' if metric == 'iou' else 'answers'}", "Name at least one that is right")
    if bool(line.choices) != (metric == "choice"):
        raise ParityError(f"{where}: choices and the metric choice belong together", FORMAT)
    return Question(
        task=path.stem,
        id=line.id or str(number),
        kind=line.kind,
        images=images,
        text=line.question,
        answers=letters_of(line, where) if metric == "choice" else tuple(line.answers),
        metric=metric,
        choices=tuple(line.choices),
        boxes=tuple(box_of(box, images[0], where) for box in line.boxes),
        new_tokens=line.max_new_tokens,
        where=where,
    )


def metric_of(name: str, where: str) -> Metric:
    metrics: tuple[Metric, ...] = get_args(Metric)
    for metric in metrics:
        if name == metric:
            return metric
    close = get_close_matches(name, metrics, n=1)
    advice = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(metrics)}"
    raise ParityError(f"{where}: no metric named {name[:60]!r}", advice)


def letters_of(line: TaskLine, where: str) -> tuple[str, ...]:
    """The letters of the right options, each given by its letter or its text."""
    letters = dict(zip(LETTERS, line.choices, strict=False))
    texts = {choice: letter for letter, choice in letters.items()}
    for answer in line.answers:
        if answer not in letters and answer not in texts:
            raise ParityError(
                f"{where}: the answer {answer[:60]!r} is none of the choices", "Name one by text or letter"
            )
    return tuple(texts.get(answer, answer) for answer in line.answers)


def box_of(values: Sequence[float], picture: PictureFile, where: str) -> Box:
    """A box inside the picture."""
    if len(values) != BOX:
        raise ParityError(f"{where}: a box has {len(values)} numbers", "Write [left, top, right, bottom] in pixels")
    left, top, right, bottom = values
    width, height = picture.size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        what = f"{where}: the box {list(values)} is not inside a picture of {width}x{height}"
        raise ParityError(what, "Write [left, top, right, bottom] in pixels")
    return left, top, right, bottom


def picture_of(name: str, where: str, folder: Path, pictures: dict[Path, PictureFile], digest: Any) -> PictureFile:
    """A picture in the folder or below it; its header is read and its bytes added to the digest, once."""
    try:
        path, inside = (folder / name).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null character, links in a circle
        raise ParityError(f"{where}: {name[:100]!r} is no path ({error})", "Check the path") from None
    if not path.is_relative_to(inside):
        raise ParityError(
            f"{where}: {name} is outside of {folder}", "Move the picture into the folder of the task file"
        )
    if path not in pictures:
        if not path.is_file():
            raise ParityError(f"{where}: no picture {name}", f"Paths are relative to {folder}")
        data = read_limited(path, MOST_PICTURE_BYTES, f"{where}: {name}")
        digest.update(hashlib.sha256(data).digest())
        try:
            with path.open("rb") as file, decoding(name), open_encoded(file) as image:
                check_size(image.width, image.height, name)
                turned = image.getexif().get(ORIENTATION, 1) >= QUARTER_TURNED
                pictures[path] = PictureFile(path, image.size[::-1] if turned else image.size)
        except PIL.UnidentifiedImageError:
            raise ParityError(
                f"{where}: {name} is not a picture that is read here", "Convert it to PNG or JPEG"
            ) from None
        except InputError as error:
            raise ParityError(f"{where}: {error.what}", error.next) from None
    return pictures[path]


def write_task(path: Path, questions: Iterable[Question]) -> None:
    """Write questions with pictures in memory as a task file, the pictures as PNG into `pictures` beside it."""
    folder = path.parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for question in questions:
        assert not question.frames and not question.boxes, "not written"
        names = [f"{question.id}-{index}.png" for index in range(len(question.images))]
        for name, image in zip(names, question.images, strict=True):
            assert isinstance(image, PIL.Image.Image)
            image.save(folder / name)
        values = {
            "id": question.id,
            "kind": question.kind,
            "images": [f"pictures/{name}" for name in names],
            "question": question.text,
            "answers": list(question.answers),
            "metric": question.metric,
            "max_new_tokens": question.new_tokens,
        }
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), "utf-8")
