"""The held-out exam: questions with known answers, at many picture sizes.

Knows the questions and nothing of the model. Training draws from `random.Random` seeded with strings that start with
"train"; every question here is seeded with a string that starts with "exam", so the two never share a stream: a picture
(its shapes, places, sizes, shades and noise) is not one that was trained on. Questions without a picture come from a
small closed set (sums, repeated words) and may have been seen; they are reported on their own.

    python -m parity_tests.harness.cases.exam DIR PER_SIZE

writes the exam into a directory as a task file, `drawn.jsonl`, with its pictures.
"""

import random
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from parity_tests.harness.cases.questions import (
    CLIP_KINDS,
    GRID_KINDS,
    MANY_KINDS,
    NUMBER_KINDS,
    SCENE_KINDS,
    Turn,
    ask_clip,
    ask_grid,
    ask_many,
    ask_number,
    ask_scene,
    ask_text,
)
from parity_tests.harness.cases.scenes import draw_clip, draw_digits, draw_scene, max_digit_columns, max_digit_rows
from parity_tests.harness.cases.task_files import write_task
from parity_tests.harness.cases.tasks import Question

EXAM_SEED = 4242
EXAM_SIZES = (  # width, height; several are no multiple of the 32-pixel merge cell
    (64, 64),
    (96, 64),
    (64, 160),
    (128, 128),
    (160, 96),
    (192, 192),
    (224, 160),
    (150, 211),
    (301, 97),
    (256, 256),
    (320, 192),
    (192, 384),
    (512, 128),
    (384, 384),
    (448, 320),
    (512, 512),
    (640, 480),
)
CLIP_SIZES = ((96, 96), (128, 96), (96, 160), (160, 128))
ONE_PICTURE = (  # one round of questions for a size; `exam` repeats it as often as needed
    *SCENE_KINDS,
    "number",
    "grid_all",
    "at",
    "digit_last",
    "count_by",
    "grid_row",
    "describe",
    "number",
    "exists",
    "grid_cell",
    "where",
    "digit_first",
    "relation",
    "grid_column",
    "count",
    "digit_count",
)
STRIDE = 5  # each size starts at another place of the round, so that few questions per size still cover every kind


MANY, TEXT = "several-pictures", "no-picture"
GROUPS = (*("{}x{}".format(*size) for size in EXAM_SIZES), MANY, TEXT)
NAME = "exam"  # of the task
ANSWER_TOKENS = 48  # the longest answer takes 28
KINDS = {  # what the kinds of questions ask for
    **dict.fromkeys(("at", "where", "relation", "many_at"), "where"),
    **dict.fromkeys(("count", "count_by", "digit_count", "more", "many_count"), "how many"),
    **dict.fromkeys((*GRID_KINDS, "number", "digit_first", "digit_last"), "read the digits"),
    **dict.fromkeys(("describe", "many_describe"), "describe"),
    **dict.fromkeys(("color", "shape", "exists", "look", "which"), "what"),
    "text": "without a picture",
}


@cache
def exam_groups(per_size: int) -> dict[str, tuple[Question, ...]]:
    """The exam by group, each question of the kind in `KINDS` that it belongs to."""
    groups: dict[str, tuple[Question, ...]] = dict.fromkeys(GROUPS, ())
    for question in exam(per_size):
        groups[group_of(question)] += (replace(question, kind=KINDS[question.kind]),)
    return groups


def group_of(question: Question) -> str:
    """The picture size, or that there are several or none."""
    if len(question.images) == 1:
        return "{}x{}".format(*question.sizes[0])
    return MANY if question.images else TEXT


def exam(per_size: int = 20) -> list[Question]:
    """`per_size` questions for each size, then twice as many on several pictures and as many on none."""
    questions = [
        picture_question(size, index, ONE_PICTURE[(STRIDE * position + index) % len(ONE_PICTURE)])
        for position, size in enumerate(EXAM_SIZES)
        for index in range(per_size)
    ]
    questions += [pictures_question(index, MANY_KINDS[index % len(MANY_KINDS)]) for index in range(2 * per_size)]
    questions += [text_question(index) for index in range(per_size)]
    return questions


def video_exam(count: int = 24) -> list[Question]:
    questions = []
    for index in range(count):
        rng = random_stream("clip", index)
        size = CLIP_SIZES[index % len(CLIP_SIZES)]
        clip = draw_clip(rng, *size, frame_count=rng.choice((4, 6, 8)))
        turn = ask_clip(clip, CLIP_KINDS[index % len(CLIP_KINDS)])
        questions.append(question_of(f"clip-{index}", turn, frames=clip.frames))
    return questions


def random_stream(*key: object) -> random.Random:
    return random.Random("-".join(["exam", str(EXAM_SEED), *map(str, key)]))


def picture_question(size: tuple[int, int], index: int, kind: str) -> Question:
    rng = random_stream("{}x{}".format(*size), index)
    if kind in GRID_KINDS and max_digit_rows(size[1]) < 2:
        kind = "number"  # too low for two rows of digits
    while True:
        image, turn = ask_about_picture(rng, size, kind)
        if turn is not None:
            return question_of("{}x{}-{}".format(*size, index), turn, (image,))


def ask_about_picture(rng: random.Random, size: tuple[int, int], kind: str) -> tuple[Image.Image, Turn | None]:
    if kind in SCENE_KINDS:
        scene = draw_scene(rng, *size, count=rng.randint(2 if kind == "relation" else 1, 4))
        return scene.image, ask_scene(rng, scene, kind)
    columns = rng.randint(1, max_digit_columns(size[0]))
    if kind in NUMBER_KINDS:
        number = draw_digits(rng, *size, rows=1, columns=columns)
        return number.image, ask_number(number, kind)
    table = draw_digits(rng, *size, rows=rng.randint(2, max_digit_rows(size[1])), columns=columns)
    return table.image, ask_grid(rng, table, kind)


def pictures_question(index: int, kind: str) -> Question:
    rng = random_stream("many", index)
    turn = None
    while turn is None:
        sizes = rng.sample(EXAM_SIZES[:10], 3 if kind != "more" and rng.random() < 0.25 else 2)
        scenes = [draw_scene(rng, *size, count=rng.randint(1, 3)) for size in sizes]
        turn = ask_many(rng, scenes, kind)
    images = tuple(scene.image for scene in scenes)
    return question_of(f"many-{index}", turn, images)


def text_question(index: int) -> Question:
    return question_of(f"text-{index}", ask_text(random_stream("text", index)))


def question_of(
    name: str, turn: Turn, images: tuple[Image.Image, ...] = (), frames: tuple[Image.Image, ...] = ()
) -> Question:
    return Question(NAME, name, turn.kind, images, turn.prompt, (turn.answer,), frames=frames, new_tokens=ANSWER_TOKENS)


if __name__ == "__main__":
    folder, per_size = Path(sys.argv[1]), int(sys.argv[2])
    every = (question for group in exam_groups(per_size).values() for question in group)
    write_task(folder / "drawn.jsonl", every)
