"""Chooses the frames of a video that the model sees.

Frames are sampled as transformers 5.23's `Qwen3VLVideoProcessor.sample_frames` does: about `fps` a second as
`video_preprocessor_config.json` says, evenly spaced from the first to the last, at least `min_frames` and at most
`max_frames`. If a message chooses frames itself, they are those of qwen-vl-utils 0.0.14 (`smart_nframes` and
`calculate_video_frame_range`). Frames are read lazily, one at a time: a long video is never in memory as a whole.

Knows frames and their rates; nothing about patches, or about where frames come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import PIL.Image

from ...errors import ArtifactError, InputError
from ...json_form import AtLeast, from_settings
from ..arrays import Ints

Frames = Iterator[PIL.Image.Image]
PAIR = 2  # frames that share their tokens; qwen-vl-utils takes an even number of frames
LARGEST = 10**12  # of the numbers that a message may have; larger ones would overflow in what is computed from them
RATES = (1e-6, 1e6)  # frames per second, for the same reason


@dataclass(frozen=True)
class FrameRules:
    """Frame sampling as set in `video_preprocessor_config.json`: frames per second, minimum and maximum.

    `fps` and `num_frames` exclude each other; with neither, all frames up to `max_frames` are used. `every_frame` is
    `do_sample_frames: false`: all frames, however many.
    """

    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    every_frame: bool = False


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a file a message asks for, in the terms of qwen-vl-utils; None leaves it to its defaults.

    Raises:
        InputError: a number that is not above 0 (`video_start`: below 0), or keys that exclude each other.
    """

    fps: float | None = None  # frames per second to sample; default: 2
    nframes: int | None = None  # how many frames, in place of a rate
    min_frames: int | None = None  # default: 4
    max_frames: int | None = None  # default: 768
    video_start: float | None = None  # seconds; default: the whole video
    video_end: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = (int,) if field.name.endswith("frames") else (int, float)
            if value is None:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value <= LARGEST:
                raise InputError(f"{field.name} is {shorten(value)}", f"Use a number from 0 to {LARGEST}")
            if value == 0 and field.name != "video_start":
                raise InputError(f"{field.name} is 0", "Use a number above 0")
        rate = [name for name in ("fps", "min_frames", "max_frames") if getattr(self, name) is not None]
        if self.nframes is not None and rate:
            raise InputError(f"nframes beside {rate[0]}", "Give a number of frames or a rate, not both")
        if self.min_frames is not None and self.max_frames is not None and self.min_frames > self.max_frames:
            raise InputError(f"min_frames is {self.min_frames}, above max_frames, {self.max_frames}", "Swap them")


@dataclass(frozen=True)
class SampledVideo:
    """An opened video: the size of its frames in pixels, the frames that were sampled, and their images."""

    height: int
    width: int
    fps: float  # of the whole video
    indices: Ints  # int64 [frames], positions of the sampled frames in the whole video
    frames: Frames  # the sampled frames; can be iterated once


@dataclass(frozen=True)
class StoredFrameSettings:
    """The form of what a `video_preprocessor_config.json` says of frames."""

    fps: float | None = None
    num_frames: Annotated[int, AtLeast(1)] | None = None
    min_frames: int = 4
    max_frames: int = 768
    do_sample_frames: bool | None = None


def read_frame_rules(config: Mapping[str, Any], name: str) -> FrameRules:
    """Read a parsed `video_preprocessor_config.json`; the defaults are those of `Qwen3VLVideoProcessor`.

    Raises:
        ArtifactError: a value of another type, or numbers that contradict each other.
    """
    try:
        stored = from_settings(StoredFrameSettings, config)
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}", "Rebuild") from error
    number = stored.num_frames
    fps = stored.fps if "fps" in config else None if number else 2.0
    every_frame = stored.do_sample_frames is False
    rules = FrameRules(fps, number, stored.min_frames, stored.max_frames, every_frame)
    if (fps and number) or (fps is not None and not fps > 0) or not 0 < rules.min_frames <= rules.max_frames:
        raise ArtifactError(f"{name}: fps, num_frames, min_frames and max_frames contradict each other", "Rebuild")
    return rules


def sample_frames(total: int, fps: float, rules: FrameRules, sample_fps: float | None = None) -> Ints:
    """Positions of the frames the model sees, of `total` frames at `fps` frames per second: int64 [frames], ascending.

    Args:
        sample_fps: frames per second to sample, in place of the rules' rate or number.

    Raises:
        InputError: a rate below 1e-6 or above 1e6.
    """
    check_rate(fps)
    if sample_fps is not None:
        check_rate(sample_fps)
    rate = rules.fps if sample_fps is None else sample_fps
    if sample_fps is None and rules.every_frame:
        count = total
    elif sample_fps is None and rules.num_frames is not None:
        count = min(rules.num_frames, total)
    elif rate is not None:
        count = int(min(max(total / fps * rate, rules.min_frames), rules.max_frames, total))
    else:
        count = min(total, rules.max_frames)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def check_rate(fps: float) -> None:
    if not RATES[0] <= fps <= RATES[1]:
        raise InputError(f"a video of {fps:g} frames per second", f"Use a number from {RATES[0]:g} to {RATES[1]:.0f}")


def shorten(value: Any) -> str:
    """A value of a message for an error: its beginning."""
    is_long = isinstance(value, int) and abs(value) > LARGEST  # Python does not print the longest ones at all
    return f"above {LARGEST}" if is_long else repr(value)[:40]


def choose_frames(total: int, fps: float, choice: FrameChoice) -> Ints:
    """As `sample_frames`, for what a message asks for.

    Raises:
        InputError: more frames than there are, or an empty range of seconds.
    """
    first, last = frame_range(total, fps, choice)
    available = last - first + 1
    if choice.nframes is not None:
        count = round(choice.nframes / PAIR) * PAIR
    else:
        low = math.ceil((4 if choice.min_frames is None else choice.min_frames) / PAIR) * PAIR
        high = min(768, available) if choice.max_frames is None else choice.max_frames
        wanted = available / fps * (2.0 if choice.fps is None else choice.fps)
        count = math.floor(min(max(wanted, low), high // PAIR * PAIR, available) / PAIR) * PAIR
    if not PAIR <= count <= available:
        raise InputError(f"{count} frames of {available} are asked for", f"Ask for {PAIR} to {available} frames")
    return line_of_frames(first, last, count)


def frame_range(total: int, fps: float, choice: FrameChoice) -> tuple[int, int]:
    """The first and the last frame between `video_start` and `video_end`."""
    if choice.video_start is None and choice.video_end is None:
        return 0, total - 1
    seconds = total / fps
    start, end = choice.video_start or 0.0, seconds if choice.video_end is None else choice.video_end
    first, last = math.ceil(min(start, seconds) * fps), min(math.floor(min(end, seconds) * fps), total - 1)
    if first >= last:
        raise InputError(
            f"no two frames between second {start:g} and second {end:g} of a video of {seconds:.2f} seconds",
            "Correct video_start or video_end",
        )
    return first, last


def line_of_frames(first: int, last: int, count: int) -> Ints:
    """`count` positions from `first` to `last`, evenly spaced: int64 [count].

    From both ends and rounded to float32, as `torch.linspace`, which decides where halves go.
    """
    step, number = float(np.float32(last - first) / np.float32(max(count - 1, 1))), np.arange(count)
    values = np.where(number < count // 2, first + step * number, last - step * number[::-1])
    return values.astype(np.float32).round().astype(np.int64)
