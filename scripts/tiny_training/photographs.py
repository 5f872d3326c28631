"""Photographs with questions a tiny model can answer: what is shown, main colour, brightness, format.

Knows the pictures that scikit-image ships and what they show. Answers about colour and brightness are computed from the
pixels of the crop at hand. No photograph is held out: the model has seen crops of every one.
"""

import functools
import random

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance

from parity_tests.harness.cases.questions import Turn, ask_look

SUBJECTS = {  # function of skimage.data -> what it shows
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "astronaut": "an astronaut",
    "rocket": "a rocket",
    "hubble_deep_field": "galaxies",
    "retina": "an eye",
    "camera": "a man with a camera",
    "motorcycle": "a motorcycle",
}
NAMED_COLORS = {  # what the mean pixel of a photograph is compared with
    "black": (15, 15, 15),
    "gray": (115, 115, 115),
    "white": (225, 225, 225),
    "red": (170, 50, 45),
    "brown": (145, 100, 72),
    "orange": (215, 130, 50),
    "yellow": (205, 185, 60),
    "green": (70, 135, 70),
    "blue": (65, 90, 165),
    "purple": (125, 70, 140),
}
SURE = 1.25  # the second nearest color must be this much farther, or the question is not asked


@functools.cache
def photograph(name: str) -> Image.Image:
    pixels = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    return Image.fromarray(pixels).convert("RGB")


def crop(rng: random.Random, name: str, width: int, height: int) -> Image.Image:
    """A window with the asked format that keeps most of the subject, sometimes mirrored, tinted or darkened."""
    source = photograph(name)
    if rng.random() < 0.3:  # the whole picture, whatever its format
        return vary(rng, source.resize((width, height), Image.Resampling.BICUBIC))
    scale = min(source.width / width, source.height / height) * rng.uniform(0.75, 1.0)
    window = width * scale, height * scale
    left = rng.uniform(0.15, 0.85) * (source.width - window[0])
    top = rng.uniform(0.15, 0.85) * (source.height - window[1])
    box = (left, top, left + window[0], top + window[1])
    return vary(rng, source.resize((width, height), Image.Resampling.BICUBIC, box=box))


def vary(rng: random.Random, image: Image.Image) -> Image.Image:
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.35, 1.7))
    if rng.random() < 0.35:
        gains = np.array([rng.uniform(0.4, 1.5) for _ in range(3)])
        image = Image.fromarray(np.clip(np.asarray(image) * gains, 0, 255).astype(np.uint8))
    return image


def main_color(image: Image.Image) -> str | None:
    """The named color nearest to the mean pixel; None when two are about as near."""
    mean = np.asarray(image).reshape(-1, 3).mean(0)
    distances = sorted((float(np.linalg.norm(mean - np.array(rgb))), name) for name, rgb in NAMED_COLORS.items())
    (nearest, name), (second, _) = distances[:2]
    return name if second > SURE * nearest else None


def ask_photograph(rng: random.Random, image: Image.Image, name: str) -> Turn | None:
    topic = rng.choice(("what", "what", "describe", "color", "color", "look", "look", "look", "animal"))
    if topic == "what":
        return Turn("photo_what", "What is this?", SUBJECTS[name])
    if topic == "describe":
        return Turn("photo_what", "Describe the picture.", f"a photograph of {SUBJECTS[name]}")
    if topic == "animal":
        return Turn("photo_what", "What animal is this?", "a cat") if name == "chelsea" else None
    if topic == "color":
        color = main_color(image)
        return Turn("photo_color", "What is the main color?", color) if color else None
    turn = ask_look(rng, image, drawn=False)
    return Turn("photo_look", turn.prompt, turn.answer) if turn else None
