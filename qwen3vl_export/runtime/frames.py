"""Which frames of a video the model sees.

Frames are chosen as transformers 5.23's `Qwen3VLVideoProcessor.sample_frames` chooses them: about `fps` of
`video_preprocessor_config.json` a second, evenly from the first to the last, at least `min_frames` and at most
`max_frames`. Frames are read when they are asked for, one at a time: a long video is never in memory as a whole.

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
    """What `video_preprocessor_config.json` says about frames: how many a second, and how many at least and at most.

    `fps` and `num_frames` exclude each other; with neither, all frames up to `max_frames` are seen.
    """

    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int


@dataclass(frozen=True)
class Clip:
    """A video that was opened: the size of its frames, which were chosen, and the images of these, to be read once."""

    height: int
    width: int
    fps: float
    indices: Ints  # [frames], positions in the whole video
    frames: Frames


def frame_rules(config: Mapping[str, Any], name: str) -> FrameRules:
    """Read `video_preprocessor_config.json`, already parsed; what it leaves out is as `Qwen3VLVideoProcessor` has it.

    Raises:
        ArtifactError: numbers that contradict each other.
    """
    number = config.get("num_frames")
    fps = config.get("fps", None if number else 2.0)
    rules = FrameRules(fps, number, int(config.get("min_frames", 4)), int(config.get("max_frames", 768)))
    if (fps and number) or (fps is not None and not fps > 0) or not 0 < rules.min_frames <= rules.max_frames:
        raise ArtifactError(f"{name}: fps, num_frames, min_frames and max_frames contradict each other", "Rebuild")
    return rules


def sample_frames(total: int, fps: float, rules: FrameRules, sample_fps: float | None = None) -> Ints:
    """Which of `total` frames, `fps` of them a second, the model sees: int64 [frames], ascending.

    Raises:
        InputError: a rate that is not above 0.
    """
    for rate in (fps, sample_fps):
        if rate is not None and not 0 < rate < np.inf:
            raise InputError(f"a video of {rate:g} frames per second", "Use a number above 0")
    wanted = rules.fps if sample_fps is None else sample_fps
    if sample_fps is None and rules.num_frames is not None:
        count = min(rules.num_frames, total)
    elif wanted is not None:
        count = min(max(int(total / fps * wanted), rules.min_frames), rules.max_frames, total)
    else:
        count = min(total, rules.max_frames)
    return np.linspace(0, total - 1, count).round().astype(np.int64)
