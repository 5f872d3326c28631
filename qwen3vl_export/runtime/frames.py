"""Chooses the frames of a video that the model sees.

Frames are sampled as transformers 5.23's `Qwen3VLVideoProcessor.sample_frames` does: about `fps` a second as
`video_preprocessor_config.json` says, evenly spaced from the first to the last, at least `min_frames` and at most
`max_frames`. Frames are read lazily, one at a time: a long video is never in memory as a whole.

Knows frames and their rates; nothing about patches, or about where frames come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from ..errors import ArtifactError, InputError
from .arrays import Ints

Frames = Iterator[PIL.Image.Image]


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
class SampledVideo:
    """An opened video: the size of its frames in pixels, the frames that were sampled, and their images."""

    height: int
    width: int
    fps: float  # of the whole video
    indices: Ints  # int64 [frames], positions of the sampled frames in the whole video
    frames: Frames  # the sampled frames; can be iterated once


def read_frame_rules(config: Mapping[str, Any], name: str) -> FrameRules:
    """Read a parsed `video_preprocessor_config.json`; the defaults are those of `Qwen3VLVideoProcessor`.

    Raises:
        ArtifactError: numbers that contradict each other.
    """
    number = config.get("num_frames")
    fps = config.get("fps", None if number else 2.0)
    bounds = int(config.get("min_frames", 4)), int(config.get("max_frames", 768))
    rules = FrameRules(fps, number, *bounds, every_frame=config.get("do_sample_frames") is False)
    if (fps and number) or (fps is not None and not fps > 0) or not 0 < rules.min_frames <= rules.max_frames:
        raise ArtifactError(f"{name}: fps, num_frames, min_frames and max_frames contradict each other", "Rebuild")
    return rules


def sample_frames(total: int, fps: float, rules: FrameRules, sample_fps: float | None = None) -> Ints:
    """Positions of the frames the model sees, of `total` frames at `fps` frames per second: int64 [frames], ascending.

    Args:
        sample_fps: frames per second to sample, in place of the rules' rate or number.

    Raises:
        InputError: a rate that is not above 0.
    """
    for given_fps in (fps, sample_fps):
        if given_fps is not None and not 0 < given_fps < np.inf:
            raise InputError(f"a video of {given_fps:g} frames per second", "Use a number above 0")
    rate = rules.fps if sample_fps is None else sample_fps
    if sample_fps is None and rules.every_frame:
        count = total
    elif sample_fps is None and rules.num_frames is not None:
        count = min(rules.num_frames, total)
    elif rate is not None:
        count = min(max(int(total / fps * rate), rules.min_frames), rules.max_frames, total)
    else:
        count = min(total, rules.max_frames)
    return np.linspace(0, total - 1, count).round().astype(np.int64)
