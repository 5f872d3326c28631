"""Loads pictures from any source as 8-bit RGB.

Colour follows transformers 5.23: a file (or its bytes) goes through `image_utils.load_image`, which applies the EXIF
orientation and drops alpha, but keeps a palette's transparent colour, which is then composited over white; a PIL image
or an array goes through `image_transforms.convert_to_rgb`, which ignores the orientation and composites alpha over
white. One departure: 16-bit gray keeps its upper 8 bits here, where Pillow's conversion would clip everything over 255
to white.

Knows nothing about sizes, patches or models.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
from numpy.typing import NDArray

from ..errors import InputError
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
        return decode_image(source, name)
    if isinstance(source, PIL.Image.Image):
        return composite_over_white(require_pixels(source, "image"))
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
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image file", "Check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "Pass an image file") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> PIL.Image.Image:
    """Decode the bytes of an image file, called `name` in errors."""
    if not data:
        raise InputError(f"{name}: the file is empty", ADVICE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with open_encoded(data) as image:
                image.load()
                upright = PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels ({error})", "Make it smaller, or pass a PIL image") from error
    except PIL.UnidentifiedImageError as error:
        format = refused_format(data)
        what = f"begins as {format} files do, which are not read" if format else "not an image that is read here"
        raise InputError(f"{name}: {what}", ADVICE) from error
    except Exception as error:  # damaged files make decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise InputError(f"{name}: damaged or truncated image ({error})", "Save it again or pass another") from error
    rgb = to_eight_bit(require_pixels(upright, name)).convert("RGB")
    return composite_over_white(rgb)  # a palette's transparent colour survives the conversion, as in transformers


def open_encoded(data: bytes) -> PIL.ImageFile.ImageFile:
    """An image file in one of `FORMATS`, not decoded yet. Pillow knows others that run programs (EPS: Ghostscript).

    Raises:
        PIL.UnidentifiedImageError: it is in none of them.
    """
    return PIL.Image.open(BytesIO(data), formats=FORMATS)


def refused_format(data: bytes) -> str | None:
    """Which other format a file seems to be in, by its first bytes alone: `EPS`; nothing is opened."""
    PIL.Image.init()
    for name, (_, accepts) in PIL.Image.OPEN.items():
        with suppress(Exception):  # they meet bytes of any kind and number
            if name not in map(str.upper, FORMATS) and accepts is not None and accepts(data[:PREFIX]):
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
        return (array.astype(np.float64) * 255).astype(np.float32).astype(np.uint8)
    raise InputError(f"image array of {array.dtype}", "Expected uint8, uint16, or floats between 0 and 1")


def require_pixels(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """The image itself; an `InputError` if one of its sides is 0."""
    if 0 in image.size:
        raise InputError(f"{name}: {image.width}x{image.height}, it has no pixels", "Pass an image of at least 1x1")
    return image


def composite_over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB, with transparency composited over white."""
    image = to_eight_bit(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, layer).convert("RGB")


def to_eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Gray of 16 bits, 32 bits or floats to 8 bits; every other mode unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    gray = np.asarray(image)
    if image.mode == "F":
        return PIL.Image.fromarray((np.clip(gray, 0, 1) * 255).astype(np.uint8))
    if image.mode == "I" and gray.max() <= 255:  # an 8-bit picture in a wide container
        return PIL.Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))
    return PIL.Image.fromarray((np.clip(gray, 0, 65535) >> 8).astype(np.uint8))
