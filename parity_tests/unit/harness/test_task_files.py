"""Task files: what is wrong is one line with the file and the line, before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from parity_tests.harness.cases import task_files
from parity_tests.harness.cases.exam import KINDS, exam, exam_groups
from parity_tests.harness.cases.task_files import load_task, load_tasks, write_task
from parity_tests.harness.cases.tasks import PictureFile
from qwen3vl_export.errors import ParityError

GOOD = {"question": "What is this?", "answers": ["a cat"], "metric": "exact", "images": ["a.png"]}
BOX = {"question": "Where is the cat?", "boxes": [[1, 2, 30, 20]], "metric": "iou", "images": ["a.png"]}
CHOICE = {"question": "Which?", "choices": ["red", "blue"], "answers": ["B"], "metric": "choice"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task file beside a picture of 32x24 pixels; lines are text or values."""
    folder = tmp_path / "task"
    folder.mkdir()
    Image.new("RGB", (32, 24)).save(folder / "a.png")
    Image.new("RGB", (32, 24)).save(tmp_path / "outside.png")
    (folder / "text.png").write_text("no picture")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    Image.new("RGB", (600, 2)).save(folder / "thread.png")

    def write(*lines: Any) -> Path:
        path = folder / "questions.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
        return path

    return write


def test_a_file_is_read_with_its_pictures(write: Callable[..., Path]) -> None:
    task = load_task(write({**GOOD, "id": "cat", "kind": "what"}, "", BOX, {**CHOICE, "answers": ["blue", "A"]}))
    cat, box, choice = task.questions
    assert (cat.name, cat.kind, cat.images, cat.new_tokens) == (
        "questions/cat",
        "what",
        (PictureFile(cat.images[0].path.resolve(), (32, 24)),),  # type: ignore[union-attr]
        128,
    )
    assert (box.id, box.boxes) == ("3", ((1, 2, 30, 20),))
    assert (choice.answers, choice.ask) == (("B", "A"), "Which?\nA. red\nB. blue")


def test_pictures_that_are_shown_turned_have_the_size_they_are_shown_in(write: Callable[..., Path]) -> None:
    path = write({**GOOD, "images": ["turned.jpg"]})
    exif = Image.Exif()
    exif[task_files.ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(path.parent / "turned.jpg", exif=exif)
    assert load_task(path).questions[0].sizes == [(20, 40)]


def test_the_digest_is_that_of_lines_and_pictures(write: Callable[..., Path]) -> None:
    path = write(GOOD)
    first = load_task(path).sha256
    assert load_task(path).sha256 == first
    Image.new("RGB", (32, 24), "red").save(path.parent / "a.png")
    second = load_task(path).sha256
    assert second != first and load_task(write({**GOOD, "kind": "what"})).sha256 != second


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"question": "a", "question": "b"}', "not JSON"),
        (GOOD | {"metrik": "exact"}, "metrik: Extra inputs"),
        ({key: value for key, value in GOOD.items() if key != "question"}, "question: Field required"),
        (GOOD | {"question": ""}, "question: String should have at least 1 character"),
        (GOOD | {"question": 7}, "question: Input should be a valid string"),
        (GOOD | {"metric": "exakt"}, "no metric named 'exakt'. Did you mean exact?"),
        (GOOD | {"metric": "f1"}, "no metric named 'f1'. Choose one of exact, contains, anls, choice, iou"),
        (GOOD | {"answers": []}, "no answers"),
        (GOOD | {"answers": [" "]}, "no answers"),
        (GOOD | {"images": ["b.png"]}, "no picture b.png"),
        (GOOD | {"images": ["../outside.png"]}, "../outside.png is outside of"),
        (GOOD | {"images": ["/etc/hostname"]}, "/etc/hostname is outside of"),
        (GOOD | {"images": ["link.png"]}, "link.png is outside of"),
        (GOOD | {"images": ["a\0.png"]}, "is no path"),
        (GOOD | {"images": ["text.png"]}, "text.png is not a picture"),
        (GOOD | {"images": ["thread.png"]}, "one side is 300 times the other"),
        (GOOD | {"max_new_tokens": 0}, "max_new_tokens: Input should be greater"),
        (GOOD | {"choices": ["a", "b"]}, "choices and the metric choice belong together"),
        (GOOD | {"boxes": [[0, 0, 1, 1]]}, "boxes are for the metric iou"),
        (CHOICE | {"answers": ["C"]}, "the answer 'C' is none of the choices"),
        (CHOICE | {"choices": []}, "choices and the metric choice belong together"),
        (BOX | {"boxes": []}, "no boxes"),
        (BOX | {"images": []}, "iou is for boxes on exactly one picture"),
        (BOX | {"boxes": [[1, 2, 3]]}, "a box has 3 numbers"),
        (BOX | {"boxes": [[1, 2, 40, 20]]}, "is not inside a picture of 32x24"),
        (BOX | {"boxes": [[30, 2, 1, 20]]}, "is not inside a picture of 32x24"),
        (GOOD | {"id": "first"}, "id first is also in"),
        (GOOD | {"id": "a/b"}, "id: String should match"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: Any, message: str, write: Callable[..., Path]) -> None:
    path = write({**GOOD, "id": "first"}, line)
    with pytest.raises(ParityError) as refused:
        load_task(path)
    said = str(refused.value)
    assert said.startswith(f"{path}:2: ") and message in said and "\n" not in said and refused.value.next


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MOST_BYTES", 10, "questions.jsonl: larger than"),
        ("MOST_QUESTIONS", 1, ":2: more than 1 questions"),
        ("MOST_PICTURE_BYTES", 10, ":1: a.png: larger than"),
    ],
)
def test_what_is_too_large_is_refused(
    limit: str, value: int, message: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_files, limit, value)
    with pytest.raises(ParityError, match=message):
        load_task(write(GOOD, GOOD))


def test_files_that_are_no_tasks(write: Callable[..., Path], tmp_path: Path) -> None:
    empty = write("", "  ")
    (tmp_path / "exam.jsonl").write_text(json.dumps(CHOICE))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    for path, message in (
        (empty, "has no questions"),
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "task.json", "not a task file"),
        (tmp_path / "exam.jsonl", "exam cannot be the name of a task"),
        (tmp_path / "latin.jsonl", "latin.jsonl:1: not JSON"),
    ):
        with pytest.raises(ParityError, match=message):
            load_task(path)
    good = write(CHOICE)
    with pytest.raises(ParityError, match="two task files are called questions"):
        load_tasks([good, good])


def test_the_exam_is_a_task_and_survives_being_written_as_a_file(tmp_path: Path) -> None:
    drawn = [question for group in exam_groups(1).values() for question in group]
    write_task(tmp_path / "drawn.jsonl", drawn)
    read = load_task(tmp_path / "drawn.jsonl").questions
    assert len(read) == len(drawn) == len(exam(1))
    for question, again in zip(drawn, read, strict=True):
        assert (again.id, again.kind, again.answers, again.ask, again.new_tokens, again.metric) == (
            question.id,
            question.kind,
            question.answers,
            question.ask,
            question.new_tokens,
            question.metric,
        )
        for image, data in zip(question.images, again.prompt.images, strict=True):
            assert isinstance(image, Image.Image) and isinstance(data, bytes)
            path = tmp_path / "again.png"
            path.write_bytes(data)
            assert Image.open(path).tobytes() == image.tobytes()


def test_every_question_of_the_exam_asks_for_something_that_is_reported() -> None:
    assert {question.kind for question in exam(20)} == set(KINDS)
