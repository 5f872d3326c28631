"""The kinds of pictures a case can name, each drawn from a seed: `draw_picture("photo 451x300", seed)`.

A picture is an image in memory, or the content of a file where the file's format is tested (palette, CMYK, 16 bits,
rotated by EXIF, …). Knows how to make pictures; not what is asked about them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime.pictures.images import open_encoded

from .scenes import draw_clip, draw_digits, draw_scene, max_digit_columns, max_digit_rows

PHOTOGRAPH = Path(__file__).parent / "media" / "chelsea.png"
RANDOM_SIZE = "any-size"
PICTURE = re.compile(
    r"(?P<kind>[a-z0-9-]+) ((?P<width>\d+)x(?P<height>\d+)|any-size)( x(?P<frames>\d+))?( #(?P<seed>\d+))?"
)
ORIENTATION = 0x0112  # EXIF tag
QUARTER_TURN = 6  # stored rotated: readers rotate it back by 90 degrees
WORDS = ("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "seven", "wizards", "pack", "boxes", "of", "liquor")

PictureSource = Image.Image | bytes
Size = tuple[int, int]  # width, height
Draw = Callable[[random.Random, Size], PictureSource]


def parse(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} does not match {pattern.pattern}")
    return match


@cache
def photograph() -> Image.Image:
    return open_encoded(BytesIO(PHOTOGRAPH.read_bytes())).convert("RGB")


def draw_picture(text: str, default_seed: str) -> PictureSource:
    """The picture a line such as `drawn 150x211 #3` describes."""
    match = parse(PICTURE, text)
    size = int(match["width"]), int(match["height"])
    rng = random.Random(match["seed"] or default_seed)
    if match["kind"] not in KINDS:
        raise ParityError(f"cases.yaml: no picture kind {match['kind']}", f"Choose one of {', '.join(KINDS)}")
    return KINDS[match["kind"]](rng, size)


def draw_frames(text: str, default_seed: str) -> tuple[Image.Image, ...]:
    """The frames a line such as `clip 96x96 x4` describes."""
    match = parse(PICTURE, text)
    if match["kind"] != "clip" or not match["frames"]:
        raise ParityError(f"cases.yaml: {text!r} is no video", "Write: clip WIDTHxHEIGHT xFRAMES")
    rng = random.Random(match["seed"] or default_seed)
    return draw_clip(rng, int(match["width"]), int(match["height"]), int(match["frames"])).frames


def shapes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
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


def document(rng: random.Random, size: Size) -> Image.Image:
    """A page of small dark text in lines, with a heading and a rule."""
    image = Image.new("RGB", size, (252, 251, 247))
    draw = ImageDraw.Draw(image)
    draw.text((8, 6), f"Invoice {rng.randint(1000, 9999)}", fill=(20, 20, 30), font=ImageFont.load_default(15))
    draw.line((8, 26, size[0] - 8, 26), fill=(120, 120, 130))
    small = ImageFont.load_default(9)
    for top in range(32, size[1] - 10, 11):
        text = " ".join(rng.choice(WORDS) for _ in range(max(1, size[0] // 32))) + f" {rng.random() * 100:.2f}"
        draw.text((8, top), text, fill=(30, 30, 40), font=small)
    return image


def screenshot(rng: random.Random, size: Size) -> Image.Image:
    """A window: flat areas, one-pixel lines, buttons and small text."""
    image = Image.new("RGB", size, (240, 242, 245))
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(10)
    draw.rectangle((0, 0, size[0], 22), fill=(45, 52, 64))
    draw.text((8, 5), "Settings", fill=(255, 255, 255), font=small)
    for row, top in enumerate(range(32, size[1] - 20, 26)):
        draw.rectangle((8, top, size[0] - 8, top + 20), fill=(255, 255, 255), outline=(200, 205, 212))
        draw.text((14, top + 4), f"{rng.choice(WORDS)} {rng.choice(WORDS)}", fill=(40, 44, 52), font=small)
        color = (40, 120, 240) if rng.random() < 0.5 else (180, 186, 194)
        draw.rounded_rectangle((size[0] - 44, top + 4, size[0] - 14, top + 16), 6, fill=color)
        if row % 3 == 2:
            draw.line((8, top + 23, size[0] - 8, top + 23), fill=(210, 214, 220))
    return image


# Files, in the formats a user's picture may have.


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The content of an image file."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gray_png(rng: random.Random, size: Size) -> bytes:
    return encode(photo(rng, size).convert("L"), "PNG")


def palette_png(rng: random.Random, size: Size) -> bytes:
    return encode(photo(rng, size).quantize(64), "PNG")


def palette_gif(rng: random.Random, size: Size) -> bytes:
    """A palette with a transparent entry."""
    return encode(photo(rng, size).quantize(32), "GIF", transparency=3)


def alpha_png(rng: random.Random, size: Size) -> bytes:
    return encode(rgba(rng, size), "PNG")


def cmyk_jpeg(rng: random.Random, size: Size) -> bytes:
    return encode(photo(rng, size).convert("CMYK"), "JPEG", quality=90)


def gray16_png(rng: random.Random, size: Size) -> bytes:
    """16 bits a pixel: the photograph's brightness over the whole range, with noise in the lower byte."""
    wide = np.asarray(photo(rng, size).convert("L")).astype(np.uint16) << 8
    wide |= np.random.default_rng(rng.getrandbits(64)).integers(0, 256, wide.shape, np.uint16)
    return encode(Image.fromarray(wide), "PNG")


def rotated_jpeg(rng: random.Random, size: Size) -> bytes:
    """Stored rotated by 90 degrees, with the EXIF tag that says so; `size` is that of the upright picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    stored = photo(rng, size).transpose(Image.Transpose.ROTATE_90)
    return encode(stored, "JPEG", quality=90, exif=exif)


def webp(rng: random.Random, size: Size) -> bytes:
    return encode(photo(rng, size), "WEBP", lossless=True)


KINDS: dict[str, Draw] = {
    "drawn": shapes,
    "digits": digits,
    "noise": noise,
    "photo": photo,
    "gray": gray,
    "rgba": rgba,
    "document": document,
    "screenshot": screenshot,
    "gray-png": gray_png,
    "palette-png": palette_png,
    "palette-gif": palette_gif,
    "alpha-png": alpha_png,
    "cmyk-jpeg": cmyk_jpeg,
    "gray16-png": gray16_png,
    "turned-jpeg": rotated_jpeg,
    "webp": webp,
}
