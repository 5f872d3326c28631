"""Questions about drawn pictures, each with its only right answer.

Knows what was drawn (`scenes.py`) and how to ask about it in words; nothing about the model, the tokenizer or the exam.
Every `ask_*` returns None where a question of that kind has no single answer for the picture.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from parity_tests.harness.cases.scenes import COLORS, POSITIONS, SHAPES, Clip, DrawnScene, Thing, article

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third")
SCENE_KINDS = ("at", "where", "count", "count_by", "color", "shape", "exists", "describe", "relation", "look")
GRID_KINDS = ("grid_all", "grid_row", "grid_column", "grid_cell")
NUMBER_KINDS = ("number", "digit_count", "digit_first", "digit_last")
MANY_KINDS = ("which", "more", "many_count", "many_describe", "many_at")
CLIP_KINDS = ("motion", "clip_what")
CHAT = {
    "Hello!": "Hello! How can I help?",
    "Hi!": "Hi! Ask me about a picture.",
    "Who are you?": "I am a tiny vision model.",
    "Thank you!": "You are welcome!",
    "Goodbye!": "Goodbye!",
    "What can you do?": "I can describe simple pictures.",
}
OPPOSITES = (("left", "right"), ("top", "bottom"), ("up", "down"), ("yes", "no"), ("bright", "dark"), ("wide", "tall"))


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    kind: str
    prompt: str
    answer: str


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def describe(things: Sequence[Thing]) -> str:
    return ", ".join(f"{thing.position}: {thing.phrase}" for thing in things)


def ask_scene(rng: random.Random, scene: DrawnScene, kind: str) -> Turn | None:
    things = scene.things
    thing = rng.choice(things)
    if kind == "at":
        if rng.random() < 0.2:
            free = sorted(set(range(9)) - {other.cell for other in things})
            return Turn(kind, f"What is in the {POSITIONS[rng.choice(free)]}?", "nothing")
        word = rng.choice(("What is", "What shape is"))
        return Turn(kind, f"{word} in the {thing.position}?", thing.phrase)
    if kind == "where":
        return Turn(kind, f"Where is the {thing.name}?", thing.position)
    if kind == "count":
        where = rng.choice(("there", "in the picture"))
        return Turn(kind, f"How many shapes are {where}?", NUMBERS[len(things)])
    if kind == "count_by":
        present = rng.random() < 0.85
        if rng.random() < 0.5:
            color = thing.color if present else rng.choice(list(COLORS))
            return Turn(kind, f"How many {color} shapes are there?", NUMBERS[sum(t.color == color for t in things)])
        shape = thing.shape if present else rng.choice(SHAPES)
        return Turn(kind, f"How many {plural(shape)} are there?", NUMBERS[sum(t.shape == shape for t in things)])
    if kind == "color":
        single = [t for t in things if sum(t.shape == other.shape for other in things) == 1]
        if not single:
            return None
        thing = rng.choice(single)
        return Turn(kind, f"What color is the {thing.shape}?", thing.color)
    if kind == "shape":
        single = [t for t in things if sum(t.color == other.color for other in things) == 1]
        subject = rng.choice(single) if single else None
        word = rng.choice(("What", "Which"))  # drawn in any case, so that the stream of random numbers is the same
        return Turn(kind, f"{word} shape is {subject.color}?", subject.shape) if subject else None
    if kind == "exists":
        return ask_exists(rng, things)
    if kind == "describe":
        return Turn(kind, "Describe the picture.", describe(things))
    if kind == "relation":
        return ask_relation(rng, things)
    if kind == "look":
        return ask_look(rng, scene.image, drawn=True)
    raise ValueError(f"unknown kind {kind!r}; one of {SCENE_KINDS}")


def ask_exists(rng: random.Random, things: Sequence[Thing]) -> Turn:
    """Half of the wrong guesses combine a colour and a shape that are both in the picture."""
    if rng.random() < 0.5:
        return Turn("exists", f"Is there {rng.choice(things).phrase}?", "yes")
    present = {(thing.color, thing.shape) for thing in things}
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
    crossed = sorted({(a.color, b.shape) for a in things for b in things} - present)
    color, shape = rng.choice(crossed if crossed and rng.random() < 0.5 else absent)
    return Turn("exists", f"Is there {article(color)} {color} {shape}?", "no")


def ask_relation(rng: random.Random, things: Sequence[Thing]) -> Turn | None:
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    word, axis = rng.choice((("higher", 0), ("further left", 1)))
    a, b = divmod(first.cell, 3)[axis], divmod(second.cell, 3)[axis]
    if a == b:
        return None
    prompt = f"Which is {word}, the {first.name} or the {second.name}?"
    return Turn("relation", prompt, f"the {(first if a < b else second).name}")


def ask_look(rng: random.Random, image: Image.Image, drawn: bool) -> Turn | None:
    """Questions any picture has: brightness and format are computed, and borderline pictures are left out."""
    topic = rng.choice(("medium", "brightness", "format"))
    if topic == "medium":
        return Turn("look", "Is this a photograph or a drawing?", "a drawing" if drawn else "a photograph")
    if topic == "brightness":
        answer = brightness(image)
        return Turn("look", "Is the picture bright or dark?", answer) if answer else None
    ratio = image.width / image.height
    if ratio > 1.3 or ratio < 1 / 1.3:
        return Turn("look", "Is the picture wide or tall?", "wide" if ratio > 1 else "tall")
    return Turn("look", "Is the picture wide or tall?", "square") if ratio == 1 else None


def brightness(image: Image.Image) -> str | None:
    """By mean luma; None in between, where the answer is a matter of taste."""
    luma = float(np.asarray(image.convert("L")).mean())
    return "bright" if luma >= 150 else "dark" if luma <= 105 else None


def ask_number(scene: DrawnScene, kind: str) -> Turn:
    digits = scene.rows[0]
    prompt, answer = {
        "number": ("What number is this?", digits),
        "digit_count": ("How many digits are there?", NUMBERS[len(digits)]),
        "digit_first": ("What is the first digit?", digits[0]),
        "digit_last": ("What is the last digit?", digits[-1]),
    }[kind]
    return Turn(kind, prompt, answer)


def ask_grid(rng: random.Random, scene: DrawnScene, kind: str) -> Turn:
    row, column = rng.randrange(len(scene.rows)), rng.randrange(len(scene.rows[0]))
    prompt, answer = {
        "grid_all": ("Read all the digits.", " ".join(scene.rows)),
        "grid_row": (f"Read row {row + 1}.", scene.rows[row]),
        "grid_column": (f"Read column {column + 1}.", "".join(line[column] for line in scene.rows)),
        "grid_cell": (f"What digit is in row {row + 1}, column {column + 1}?", scene.rows[row][column]),
    }[kind]
    return Turn(kind, prompt, answer)


def ask_many(rng: random.Random, scenes: Sequence[DrawnScene], kind: str) -> Turn | None:
    """Questions about two or three scenes that need telling the pictures apart."""
    index = rng.randrange(len(scenes))
    things, ordinal = scenes[index].things, ORDINALS[index]
    if kind == "which":
        elsewhere = {t.name for i, scene in enumerate(scenes) if i != index for t in scene.things}
        single = [thing for thing in things if thing.name not in elsewhere]
        if not single:
            return None
        return Turn(kind, f"Which picture has the {rng.choice(single).name}?", f"the {ordinal}")
    if kind == "more":
        if len(scenes) != 2:
            return None
        first, second = (len(scene.things) for scene in scenes)
        answer = "the same" if first == second else "the first" if first > second else "the second"
        return Turn(kind, "Which picture has more shapes?", answer)
    if kind == "many_count":
        return Turn(kind, f"How many shapes are in the {ordinal} picture?", NUMBERS[len(things)])
    if kind == "many_describe":
        return Turn(kind, f"Describe the {ordinal} picture.", describe(things))
    if kind == "many_at":
        if len(things) == 1:
            return Turn(kind, f"What color is the shape in the {ordinal} picture?", things[0].color)
        thing = rng.choice(things)
        return Turn(kind, f"What is in the {thing.position} of the {ordinal} picture?", thing.phrase)
    raise ValueError(f"unknown kind {kind!r}; one of {MANY_KINDS}")


def ask_clip(clip: Clip, kind: str) -> Turn:
    if kind == "motion":
        answer = "it does not move" if clip.motion == "still" else clip.motion
        return Turn(kind, "Which way does the shape move?", answer)
    return Turn(kind, "What is in the video?", f"{article(clip.color)} {clip.color} {clip.shape}")


def ask_text(rng: random.Random) -> Turn:
    """Questions without a picture."""
    topic = rng.choice(("sum", "say", "reverse", "count", "chat", "opposite", "repeat"))
    words = rng.choices([*COLORS, *SHAPES], k=rng.randint(2, 4))
    if topic == "sum":
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return Turn("text", f"What is {a} plus {b}?", str(a + b))
    if topic == "say":
        return Turn("text", "Say: " + " ".join(words), " ".join(words))
    if topic == "reverse":
        return Turn("text", "Reverse: " + " ".join(words), " ".join(reversed(words)))
    if topic == "count":
        end = rng.randint(1, 9)
        return Turn("text", f"Count to {NUMBERS[end]}.", " ".join(str(i) for i in range(1, end + 1)))
    if topic == "chat":
        prompt = rng.choice(list(CHAT))
        return Turn("text", prompt, CHAT[prompt])
    if topic == "opposite":
        word, opposite = rng.sample(rng.choice(OPPOSITES), 2)
        return Turn("text", f"What is the opposite of {word}?", opposite)
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return Turn("text", f"Repeat the number {digits}.", digits)
