"""Loads pictures from any source as 8-bit RGB.

Colour follows transformers 5.23: a file (or its bytes) goes through `image_utils.load_image`, which applies the EXIF
orientation and drops alpha, but keeps a palette's transparent colour, which is then composited over white; a PIL image
or an array goes through `image_transforms.convert_to_rgb`, which ignores the orientation and composites alpha over
white. One departure: 16-bit gray keeps its upper 8 bits here, where Pillow's conversion would clip everything over 255
to white.

A file is decoded only if `decode_limits` allows the size it announces, and colours are converted a strip at a time, so
that memory stays close to that of the picture and its RGB pixels.

Knows nothing about patches or models.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
from numpy.typing import NDArray

from ...errors import InputError, first_line, os_reason
from .decode_limits import check_sides, check_size
from .fetch import PUBLIC, UrlRules
from .locate import decode_base64, locate
from .pixel_budget import PixelBudget

Source = str | Path | bytes | PIL.Image.Image | NDArray[Any]

FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF")  # a photograph with a second picture in it (MPO) is a JPEG file
ADVICE = f"Pass a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
PREFIX = 16  # bytes by which Pillow tells formats apart
CHANNELS = (1, 3, 4)
# How images of `FORMATS` begin in base64: PNG, JPEG, WebP, GIF, BMP and TIFF of either byte order.
BASE64_PREFIXES = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")
SHORTEST_BASE64 = 48  # characters; the smallest images are longer
STRIP = 1 << 18  # pixels whose colours are converted at a time
PIPE_BYTES = 1 << 28  # read at most from a pipe, such as /dev/stdin


@dataclass(frozen=True)
class Image:
    """A picture in a message: a path, a URL (`http:`, `https:`, `file:`, `data:`), the bytes of a file, a PIL image, or
    an array.

    Arrays are [h, w], [h, w, c] or [c, h, w] with c of 1, 3 or 4; uint8, uint16, or floats in [0, 1]. A string that is
    no URL and names no file may be a picture in base64.
    """

    source: Source
    budget: PixelBudget | None = None  # its size for the model; None: as the checkpoint's processor chooses


def open_image(source: Source, rules: UrlRules = PUBLIC) -> PIL.Image.Image:
    """The picture as an RGB image.

    Args:
        rules: limits for URLs.

    Raises:
        InputError: no such file, a URL that cannot be fetched, not a picture, damaged, too large, or without pixels.
    """
    name = "image bytes"
    if isinstance(source, str):
        encoded = read_base64(source)
        source, name = locate(source, rules) if encoded is None else (encoded, "base64")
    if isinstance(source, Path):
        return read_file(source)
    if isinstance(source, bytes):
        return decode_image(BytesIO(source), name)
    if isinstance(source, PIL.Image.Image):
        check_sides(source.width, source.height, "image")
        with decoding("image"):
            source.load()  # one that PIL.Image.open returned is not decoded yet
            return composite_over_white(source)
    if isinstance(source, np.ndarray):
        return from_array(source)
    raise InputError(f"an image cannot be a {type(source).__name__}", "Pass a path, bytes, a PIL image or an array")


def read_base64(text: str) -> bytes | None:
    """The bytes of an image that a string is in base64; None if it is anything else, such as the name of a file."""
    if not text.startswith(BASE64_PREFIXES) or len(text) < SHORTEST_BASE64:
        return None
    with suppress(OSError):  # a name that is too long
        if Path(text).exists():
            return None
    with suppress(ValueError):
        return decode_base64(text)
    return None


def read_file(path: Path) -> PIL.Image.Image:
    try:
        with path.open("rb") as file:
            return decode_image(file if file.seekable() else BytesIO(file.read(PIPE_BYTES)), str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image file", "Check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise InputError(f"{path}: cannot be read ({os_reason(error)})", "Pass an image file") from error


def decode_image(file: BinaryIO, name: str) -> PIL.Image.Image:
    """Decode an image file that can be sought in, called `name` in errors."""
    prefix = file.read(PREFIX)
    if not prefix:
        raise InputError(f"{name}: the file is empty", ADVICE)
    try:
        with decoding(name), open_encoded(file) as image:
            check_size(image.width, image.height, name)
            PIL.ImageOps.exif_transpose(image, in_place=True)
            return from_file(image)
    except PIL.UnidentifiedImageError as error:
        format = refused_format(prefix)
        what = f"begins as {format} files do, which are not read" if format else "not an image that is read here"
        raise InputError(f"{name}: {what}", ADVICE) from error


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn what decoders raise about damaged files into an `InputError`, and silence their warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, and of damage that does not prevent decoding
            yield
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels ({error})", "Make it smaller and try again") from error
    except (InputError, PIL.UnidentifiedImageError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, IndexError, ...; ValueError: colours such as LAB
        reason = first_line(error)
        what = "damaged or truncated image, or colours that cannot be converted"
        raise InputError(f"{name}: {what} ({reason})", "Save it again or pass another") from error


def open_encoded(file: BinaryIO) -> PIL.ImageFile.ImageFile:
    """An image file in one of `FORMATS`, not decoded yet. Pillow knows others that run programs (EPS: Ghostscript).

    Raises:
        PIL.UnidentifiedImageError: it is in none of them.
    """
    return PIL.Image.open(file, formats=FORMATS)


def refused_format(prefix: bytes) -> str | None:
    """Which other format a file seems to be in, by its first bytes alone: `EPS`; nothing is opened."""
    PIL.Image.init()
    for name, (_, accepts) in PIL.Image.OPEN.items():
        with suppress(Exception):  # they meet bytes of any kind and number
            if name not in map(str.upper, FORMATS) and accepts is not None and accepts(prefix):
                return name
    return None


def from_array(array: NDArray[Any]) -> PIL.Image.Image:
    """An RGB image from [h, w], [h, w, c] or [c, h, w] of uint8, uint16, bool, or floats in [0, 1]."""
    shape = array.shape
    if array.ndim == 3 and shape[2] not in CHANNELS and shape[0] in CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise InputError(f"image array of shape {shape}", "Expected [h, w], [h, w, c] or [c, h, w] with c of 1, 3 or 4")
    if 0 in array.shape:
        raise InputError(f"image array of shape {shape} has no pixels", "Pass an image of at least 1x1")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return composite_over_white(PIL.Image.fromarray(np.ascontiguousarray(to_uint8(array))))


def to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale to 8 bits. Floats are truncated, not rounded, as in `image_transforms.to_pil_image`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        pixels = np.empty(array.shape, np.uint8)
        rows = max(1, STRIP // array[0].size)
        for top in range(0, len(array), rows):
            scaled = array[top : top + rows].astype(np.float64) * 255
            pixels[top : top + rows] = scaled.astype(np.float32).astype(np.uint8)
        return pixels
    raise InputError(f"image array of {array.dtype}", "Expected uint8, uint16, or floats between 0 and 1")


def in_strips(image: PIL.Image.Image, convert: Callable[[PIL.Image.Image], PIL.Image.Image]) -> PIL.Image.Image:
    """`convert` applied to a strip of rows at a time; it must treat every pixel alone."""
    rows = max(1, STRIP // image.width)
    result: PIL.Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        if result is None:
            result = PIL.Image.new(strip.mode, image.size)
            result.info = strip.info
        result.paste(strip, (0, top))
    assert result is not None, "an image has rows"
    return result


def from_file(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB without alpha; a palette's transparent colour is composited over white, as it survives in transformers."""
    if is_rgb(image):
        return image
    return in_strips(to_eight_bit(image), lambda strip: composite_over_white(strip.convert("RGB")))


def composite_over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB, with transparency composited over white; the image itself if it is RGB without transparency."""
    if is_rgb(image):
        return image
    return in_strips(to_eight_bit(image), strip_over_white)


def is_rgb(image: PIL.Image.Image) -> bool:
    return image.mode == "RGB" and image.info.get("transparency") is None


def strip_over_white(strip: PIL.Image.Image) -> PIL.Image.Image:
    if "A" not in strip.getbands() and strip.info.get("transparency") is None:
        return strip.convert("RGB")
    layer = strip.convert("RGBA")
    white = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, layer).convert("RGB")


def to_eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Gray of 16 bits, 32 bits or floats to 8 bits; every other mode unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    extrema: Any = image.getextrema() if image.mode == "I" else (0, 65535)
    narrow = extrema[1] <= 255  # an 8-bit picture in a wide container
    return in_strips(image, partial(gray_to_eight_bit, high=255 if narrow else 65535))


def gray_to_eight_bit(strip: PIL.Image.Image, high: int) -> PIL.Image.Image:
    """Integers from 0 to `high`, or floats from 0 to 1, in 8 bits; what is outside is clipped, NaN is 0."""
    gray = np.asarray(strip)
    if strip.mode == "F":
        return PIL.Image.fromarray((np.clip(np.nan_to_num(gray), 0, 1) * 255).astype(np.uint8))
    return PIL.Image.fromarray((np.clip(gray, 0, high) >> (0 if high == 255 else 8)).astype(np.uint8))
