"""The size that a message asks for a picture or a video, by the arithmetic of qwen-vl-utils.

qwen-vl-utils 0.0.14 resizes what a message shows, and Qwen's examples then run the processor with `do_resize=False`: a
size in a message replaces the processor's. Equal to `smart_resize`, `fetch_image` and `fetch_video` of its
`vision_process.py` with `image_patch_size=16`, but for an upper limit: that of the checkpoint or of `Qwen3VL.load`
holds too.

Knows sizes in pixels; nothing about pictures or patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from ...errors import InputError
from .decode_limits import check_aspect
from .frames import LARGEST, PAIR, shorten
from .preprocess import fit_pixel_budget

# Numbers of qwen-vl-utils, in tokens of a picture or of a frame.
IMAGE_MIN_TOKENS, IMAGE_MAX_TOKENS = 4, 16384
FRAME_MIN_TOKENS, FRAME_MAX_TOKENS = 128, 768
VIDEO_TOKENS = 128000 * 0.9  # of all pairs of frames together
SLACK = 1.05  # the upper limit of a frame is at least this times the lower one

Size = tuple[int, int]


@dataclass(frozen=True)
class PixelBudget:
    """The size of one picture, or of each frame of a video: limits in pixels, or height and width.

    `total_pixels` limits a video as a whole, counting each pair of frames once. None leaves a limit to qwen-vl-utils'
    defaults. Height and width are rounded to multiples of a token's side.

    Raises:
        InputError: a value that is not a whole number above 0, half a size, limits beside a size, or `min_pixels` above
            `max_pixels`.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
                raise InputError(f"{field.name} is {shorten(value)}", f"Use a whole number from 1 to {LARGEST}")
        if (self.resized_height is None) != (self.resized_width is None):
            given, lacking = ("height", "width") if self.resized_width is None else ("width", "height")
            raise InputError(f"resized_{given} without resized_{lacking}", "Give both or neither")
        limits = [name for name in ("min_pixels", "max_pixels", "total_pixels") if getattr(self, name) is not None]
        if self.resized_height is not None and limits:
            raise InputError(f"{limits[0]} beside resized_height and resized_width", "Give limits or a size, not both")
        if self.min_pixels is not None and self.max_pixels is not None:
            check_order(self.min_pixels, self.max_pixels)

    def limits(self, frames: int) -> tuple[float, float]:
        """The fewest and the most pixels that a picture, or each of `frames` frames, may have by what is given."""
        high = math.inf if self.max_pixels is None else self.max_pixels
        total = math.inf if self.total_pixels is None else self.total_pixels / frames * PAIR
        return self.min_pixels or 0, min(high, total)


def image_size(height: int, width: int, budget: PixelBudget, ceiling: int, factor: int) -> Size:
    """Height and width in pixels, multiples of `factor`, of a picture of `height` x `width`.

    Args:
        ceiling: no picture may have more pixels.
        factor: the side of a token in pixels.

    Raises:
        InputError: a size above the ceiling, a lower limit above the upper one, or one side over 200 times the other.
    """
    if budget.total_pixels is not None:
        raise InputError("total_pixels is for videos", "Give max_pixels")
    low, high = IMAGE_MIN_TOKENS * factor**2, IMAGE_MAX_TOKENS * factor**2
    if budget.resized_height is not None and budget.resized_width is not None:
        return check_ceiling(fit(budget.resized_height, budget.resized_width, factor, low, high), ceiling)
    low = low if budget.min_pixels is None else budget.min_pixels
    high = min(high if budget.max_pixels is None else budget.max_pixels, ceiling)
    check_order(low, high)
    return fit(height, width, factor, low, high)


def frame_size(
    frames: int, height: int, width: int, budget: PixelBudget, ceiling: int | None, factor: int, listed: bool
) -> Size:
    """Height and width in pixels, multiples of `factor`, of each of a video's `frames` frames of `height` x `width`.

    Args:
        ceiling: no frame may have more pixels; None: as many as qwen-vl-utils allows.
        factor: the side of a token in pixels.
        listed: the video is a list of frames, which qwen-vl-utils resizes as pictures first.

    Raises:
        InputError: as `image_size`.
    """
    low = FRAME_MIN_TOKENS * factor**2 if budget.min_pixels is None else budget.min_pixels
    total = VIDEO_TOKENS * factor**2 if budget.total_pixels is None else budget.total_pixels
    high = max(min(FRAME_MAX_TOKENS * factor**2, total / frames * PAIR), int(low * SLACK))
    high = min(high, budget.max_pixels or high, ceiling or high)
    largest = IMAGE_MAX_TOKENS * factor**2
    if budget.resized_height is not None:
        return image_size(height, width, budget, ceiling or largest, factor)
    check_order(low, high)
    if listed:
        as_picture = replace(budget, total_pixels=None)
        height, width = image_size(height, width, as_picture, budget.max_pixels or largest, factor)
    return fit(height, width, factor, low, high)


def fit(height: int, width: int, factor: int, low: int, high: float) -> Size:
    """As `smart_resize` of qwen-vl-utils, which makes no side shorter than `factor` before it compares with limits."""
    check_aspect(width, height, f"an image of {width}x{height}")
    return fit_pixel_budget(height, width, factor, 1, 1, low, high, least=factor)


def check_order(low: int, high: float) -> None:
    if low > high:
        raise InputError(f"min_pixels is {low}, above max_pixels, {high:.0f}", "Raise max_pixels, or lower min_pixels")


def check_ceiling(size: Size, ceiling: int) -> Size:
    """The size itself; an `InputError` if it has more than `ceiling` pixels."""
    height, width = size
    if height * width > ceiling:
        raise InputError(
            f"resized_height and resized_width make {height * width} pixels, at most {ceiling} are possible here",
            "Make them smaller",
        )
    return size
