"""What is refused before it is decoded: a few bytes can announce a picture of any size, and decoding would allocate it.

Knows the sizes that headers announce; nothing about formats, patches or models.
"""

from __future__ import annotations

from ...errors import InputError

MAX_ASPECT = 200  # as `smart_resize` of transformers
MAX_PIXELS = 178_956_970  # where Pillow refuses a file by default, and transformers with it
MAX_FRAME_PIXELS = 1 << 26  # of a video, two 8K frames: decoders keep up to 17 frames (H.264, H.265, AV1)


def check_size(width: int, height: int, name: str, limit: int = MAX_PIXELS) -> None:
    """Refuse what no model takes, or what would take too much memory to decode.

    Args:
        width, height: in pixels.
        limit: pixels.

    Raises:
        InputError: no pixels, more than `limit`, or one side over 200 times the other.
    """
    check_sides(width, height, name)
    if width * height > limit:
        raise InputError(
            f"{name}: {width}x{height}, too many pixels: at most {limit:,} are decoded", "Make it smaller and try again"
        )
    check_aspect(width, height, f"{name}: {width}x{height}")


def check_sides(width: int, height: int, name: str) -> None:
    """Refuse a picture called `name` without pixels: an `InputError`."""
    if width < 1 or height < 1:
        raise InputError(f"{name}: {width}x{height}, it has no pixels", "Pass an image of at least 1x1")


def check_aspect(width: int, height: int, what: str) -> None:
    """Refuse an aspect ratio that `smart_resize` refuses; `what` begins the error.

    Raises:
        InputError: one side is over 200 times the other.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise InputError(
            f"{what}: one side is {aspect:.0f} times the other", f"Crop it: at most {MAX_ASPECT} times is possible"
        )
