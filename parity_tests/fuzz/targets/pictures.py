"""Pictures: mutated PNG, JPEG, GIF, WebP, BMP and TIFF files, headers with huge sizes among them.

What reads them is `Qwen3VL.picture`: the file is opened, decoded, resized and cut into patches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import PIL.Image

from ..mutations import mutate_bytes
from .base import Target, picture_file

PNG = b"\x89PNG\r\n\x1a\n"


def exif() -> PIL.Image.Exif:
    """Turned by 90 degrees, with a text."""
    tags = PIL.Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "a gradient"
    return tags


def originals() -> list[bytes]:
    """Valid files of every format, in their main variants."""
    frames: dict[str, Any] = {"save_all": True, "append_images": [PIL.Image.new("RGB", (40, 30), "red")] * 2}
    return [
        *(picture_file("PNG", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "LA")),
        picture_file("PNG", "P", transparency=3),
        picture_file("PNG", exif=exif()),
        picture_file("PNG", **frames),
        *(picture_file("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        picture_file("JPEG", progressive=True, exif=exif()),
        picture_file("GIF", "P"),
        picture_file("GIF", "P", transparency=2, **frames),
        *(picture_file("WEBP", mode, lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (True, False)),
        picture_file("WEBP", **frames),
        *(picture_file("BMP", mode) for mode in ("RGB", "L", "P", "1", "RGBA")),
        *(picture_file("TIFF", mode) for mode in ("RGB", "RGBA", "L", "I;16", "F", "CMYK", "LAB", "YCbCr", "1")),
        *(picture_file("TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        picture_file("TIFF", "1", compression="group4"),
        picture_file("TIFF", **frames),
    ]


def correct_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the right checksums, so that a decoder goes on to read what they say."""
    result, at = data[: len(PNG)], len(PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        result += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result + data[at:]


class Pictures(Target):
    name, inputs = "pictures", 1500
    seconds, megabytes = 10.0, 1800  # for pictures of `decode_limits.MAX_PIXELS`; docs/security.md says how much

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.files = originals()

    def make(self, random: Random) -> bytes:
        data = mutate_bytes(random, random.choice(self.files), random.choice(self.files))
        return correct_checksums(data) if data.startswith(PNG) and random.random() < 0.8 else data

    def open(self, box: Path) -> Callable[[bytes], object]:
        from qwen3vl_export.runtime import Image, Qwen3VL

        model = Qwen3VL.load(self.artifact)
        for file in self.files:
            model.picture(Image(file))
        return lambda data: model.picture(Image(data))
