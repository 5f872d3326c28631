"""RGB pictures and frames to the patches a vision encoder reads.

Sizes and pixels equal transformers 5.23: `Qwen2VLImageProcessorPil` for images, `Qwen3VLVideoProcessor` for frames
(except that it resizes with torchvision, and this module with Pillow, so pixels of resized frames differ by a few 8-bit
steps, see docs/parity.md). Patches are ordered in 2x2 merge blocks: the four patches that become one token are
adjacent.

Knows sizes and pixels; nothing about prompts or graphs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import PIL.Image

from ...contract import MOST_FORCED_PIXELS, Facts
from ...errors import ArtifactError, InputError
from ...json_form import AtLeast, from_settings
from ..arrays import Bytes, Float32
from .decode_limits import check_aspect

RESCALE = 1 / 255


@dataclass(frozen=True)
class PixelRules:
    """The settings of a preprocessor JSON: the pixel budget, and how 8-bit values become floats.

    `min_pixels` and `max_pixels` bound one image, or all frames of a video together. `cap_frame_tokens` is the video
    processor's optional limit of tokens per frame, None if the checkpoint does not set it. `max_frame_pixels` is a
    limit per frame that the user sets.
    """

    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    cap_frame_tokens: int | None
    max_frame_pixels: int | None = None


@dataclass(frozen=True)
class StoredSize:
    """The form of `size` in a preprocessor JSON."""

    shortest_edge: Annotated[int, AtLeast(0)] = 0
    longest_edge: Annotated[int, AtLeast(0)] = 0


@dataclass(frozen=True)
class StoredPixelSettings:
    """The form of a preprocessor JSON."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    size: Mapping[str, Any] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    rescale_factor: float | None = None
    cap_pixels_per_frame: bool | None = None
    max_video_tokens: Annotated[int, AtLeast(1)] | None = None


def read_pixel_rules(config: Mapping[str, Any], facts: Facts, name: str) -> PixelRules:
    """Read a parsed `preprocessor_config.json` or `video_preprocessor_config.json`, called `name` in errors.

    Raises:
        ArtifactError: a value that is missing, of another type or too large, or that contradicts the graphs.
    """
    try:
        stored = from_settings(StoredPixelSettings, config)
        size = from_settings(StoredSize, stored.size or {})
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}", "Rebuild the artifact") from error
    low, high = stored.min_pixels or size.shortest_edge, stored.max_pixels or size.longest_edge
    geometry = (stored.patch_size, stored.temporal_patch_size, stored.merge_size)
    mean, std = stored.image_mean, stored.image_std
    built = (facts.patch_size, facts.temporal_patch_size, facts.spatial_merge_size)
    if geometry != built:
        raise ArtifactError(
            f"{name}: patch, temporal patch and merge sizes are {geometry}, the graphs have {built}", "Rebuild"
        )
    if not 0 < low <= high:
        raise ArtifactError(f"{name}: a pixel budget of {low} to {high} is empty", "Correct size.shortest_edge")
    if low > MOST_FORCED_PIXELS:
        raise ArtifactError(
            f"{name}: every picture would be enlarged to {low} pixels, over {MOST_FORCED_PIXELS}",
            "Correct size.shortest_edge",
        )
    cap = (stored.max_video_tokens or 768) if stored.cap_pixels_per_frame else None
    rules = PixelRules(low, high, mean, std, stored.rescale_factor or RESCALE, cap)
    if not len(mean) == len(std) == facts.in_channels or not normalizes(rules):
        raise ArtifactError(
            f"{name}: image_mean and image_std are not {facts.in_channels} numbers to normalize by", "Rebuild"
        )
    return rules


def read_video_pixel_rules(config: Mapping[str, Any], facts: Facts, name: str) -> PixelRules:
    """As `read_pixel_rules`; transformers' video processor ignores `min_pixels` and `max_pixels`."""
    return read_pixel_rules({**config, "min_pixels": None, "max_pixels": None}, facts, name)


def narrow(rules: PixelRules, min_pixels: int | None, max_pixels: int | None) -> PixelRules:
    """The rules of images with narrower limits.

    Raises:
        InputError: a limit outside the checkpoint's, or an empty range.
    """
    for name, limit in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if limit is not None and not rules.min_pixels <= limit <= rules.max_pixels:
            raise InputError(
                f"{name} is {limit}, the checkpoint allows {rules.min_pixels} to {rules.max_pixels}",
                "Use a number in this range",
            )
    low = rules.min_pixels if min_pixels is None else min_pixels
    high = rules.max_pixels if max_pixels is None else max_pixels
    if low > high:
        raise InputError(f"min_pixels is {low}, above max_pixels, {high}", "Swap them")
    return replace(rules, min_pixels=low, max_pixels=high)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in pixels, multiples of `factor`, close to the given ones and within the pixel budget.

    Equal to `smart_resize` of transformers' `image_processing_qwen2_vl`; halves round to even, as Python's `round`.

    Raises:
        InputError: one side is over 200 times the other.
    """
    check_aspect(width, height, f"an image of {width}x{height}")
    return fit_pixel_budget(height, width, factor, 1, 1, min_pixels, max_pixels)


def smart_resize_video(
    frames: int, height: int, width: int, factor: int, temporal_factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """As `smart_resize` for each of `frames` frames, with a budget for all frames together.

    Equal to `smart_resize` of transformers' `video_processing_qwen3_vl`.

    Raises:
        InputError: fewer than `temporal_factor` frames, or one side over 200 times the other.
    """
    if frames < temporal_factor:
        raise InputError(f"a video of {frames} frames: at least {temporal_factor} are needed", "Send it as an image")
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect(width, height, f"an image of {width}x{height}")
    depth = round(frames / temporal_factor) * temporal_factor
    return fit_pixel_budget(height, width, factor, frames, depth, min_pixels, max_pixels)


def fit_pixel_budget(
    height: int,
    width: int,
    factor: int,
    frames: int,
    depth: int,
    min_pixels: int,
    max_pixels: float,
    least: int = 0,
) -> tuple[int, int]:
    """Both sides rounded to multiples of `factor`, and scaled if `depth` frames of that size are outside the budget.

    The scale is computed for `frames` frames of the original size, as in transformers.

    Args:
        least: no side is rounded to fewer pixels.
    """
    rounded = (max(least, round(height / factor) * factor), max(least, round(width / factor) * factor))
    volume = depth * rounded[0] * rounded[1]
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def image_grid(height: int, width: int, rules: PixelRules, facts: Facts) -> tuple[int, int]:
    """The grid (h, w), in patches, of an image of `height` x `width` pixels."""
    size = smart_resize(height, width, facts.patch_size * facts.spatial_merge_size, rules.min_pixels, rules.max_pixels)
    return size[0] // facts.patch_size, size[1] // facts.patch_size


def video_grid(frames: int, height: int, width: int, rules: PixelRules, facts: Facts) -> tuple[int, int]:
    """The grid (h, w), in patches, of each frame of a video."""
    factor = facts.patch_size * facts.spatial_merge_size
    high = rules.max_pixels
    if rules.cap_frame_tokens is not None and frames:
        share = min(rules.cap_frame_tokens * factor**2, rules.max_pixels // frames)
        high = max(share, int(rules.min_pixels * 1.05)) * frames
    if rules.max_frame_pixels is not None:
        high = max(min(high, rules.max_frame_pixels * frames), rules.min_pixels)
    size = smart_resize_video(frames, height, width, factor, facts.temporal_patch_size, rules.min_pixels, high)
    return size[0] // facts.patch_size, size[1] // facts.patch_size


def image_to_patches(image: PIL.Image.Image, grid: tuple[int, int], rules: PixelRules, facts: Facts) -> Float32:
    """One RGB image resized to `grid` = (h, w) patches: float32 [h * w, patch_dim]; every time slot has the image."""
    frame = resize_to_grid(image, grid, facts)
    return to_patches(np.stack([frame] * facts.temporal_patch_size), rules, facts)


def frames_to_patches(
    frames: Iterable[PIL.Image.Image], grid: tuple[int, int], rules: PixelRules, facts: Facts
) -> Float32:
    """RGB frames resized to `grid` = (h, w) patches: float32 [t * h * w, patch_dim], t = ceil(frames / 2).

    An odd number of frames is completed by repeating the last one.
    """
    stack = [resize_to_grid(frame, grid, facts) for frame in frames]
    stack += [stack[-1]] * (-len(stack) % facts.temporal_patch_size)
    return to_patches(np.stack(stack), rules, facts)


def resize_to_grid(image: PIL.Image.Image, grid: tuple[int, int], facts: Facts) -> Bytes:
    """The image resized to (h, w) patches: uint8 [h * patch_size, w * patch_size, 3]."""
    size = (grid[1] * facts.patch_size, grid[0] * facts.patch_size)
    return np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC))


def to_patches(frames: Bytes, rules: PixelRules, facts: Facts) -> Float32:
    """uint8 [frames, height, width, c] to float32 [t * h * w, c * temporal * patch * patch]."""
    time, patch, merge = facts.temporal_patch_size, facts.patch_size, facts.spatial_merge_size
    count, height, width, channels = frames.shape
    blocks = frames.reshape(
        count // time, time, height // patch // merge, merge, patch, width // patch // merge, merge, patch, channels
    )
    # [t, time, H, mh, ph, W, mw, pw, c] -> [t, H, W, mh, mw, c, time, ph, pw]
    blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    table = value_table(rules)
    pixels = np.empty(blocks.shape, np.float32)
    for channel in range(channels):
        pixels[:, :, :, :, :, channel] = table[channel][blocks[:, :, :, :, :, channel]]
    return pixels.reshape(-1, facts.patch_dim)


def normalizes(rules: PixelRules) -> bool:
    """Whether every value of a pixel becomes a float32, and different ones do not become the same."""
    with np.errstate(all="ignore"):
        table = value_table(rules)
    return bool(np.isfinite(table).all() and (np.diff(table) != 0).all())


def value_table(rules: PixelRules) -> Float32:
    """float32 [c, 256]: the normalized value of each 8-bit value of each channel, rounded as in transformers."""
    scaled = (np.arange(256, dtype=np.float64) * rules.rescale).astype(np.float32)
    mean, std = np.array(rules.mean, np.float32), np.array(rules.std, np.float32)
    table: Float32 = (scaled[None, :] - mean[:, None]) / std[:, None]
    return table
