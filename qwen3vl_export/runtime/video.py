"""Videos from anywhere to the frames a model sees: which of them, their common size, and the time between them.

Frames are chosen as transformers 5.23's `Qwen3VLVideoProcessor.sample_frames` chooses them: about `fps` of
`video_preprocessor_config.json` a second, evenly from the first to the last, at least `min_frames` and at most
`max_frames`. Frames are read when they are asked for, one at a time: a long video is never in memory as a whole.

Knows frames and their rates; nothing about patches, and about video files only that `video_file` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import ArtifactError, InputError
from .arrays import Ints
from .fetch import PUBLIC, UrlRules
from .images import Source, open_image
from .locate import locate

Frames = Iterator[PIL.Image.Image]


@dataclass(frozen=True)
class Video:
    """A video in a message.

    `source` is a file (path, `http:`, `https:`, `file:` or `data:` URL, or its bytes), a folder of frames in the order
    of the numbers in their names, a list of frames, each anything an `Image` can be, or an array [frames, h, w, c].
    """

    source: str | Path | bytes | Sequence[Source] | NDArray[Any]
    fps: float = 2.0  # frames a second of a folder, list or array; a file says itself
    sample_fps: float | None = None  # frames a second the model sees; None is what the checkpoint says, 2


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


def open_video(video: Video, rules: FrameRules, url_rules: UrlRules = PUBLIC) -> Clip:
    """A video ready to be read.

    Raises:
        InputError: no such file or folder, no frames, frames of different sizes, a file that is damaged, truncated or
            of a codec that cannot be read, or PyAV is not installed.
    """
    source, name = video.source, "video bytes"
    if isinstance(source, str):
        source, name = locate(source, url_rules)
    if isinstance(source, Path) and source.is_dir():
        return listed(folder_frames(source), f"{source}: ", video, rules, url_rules)
    if isinstance(source, Path | bytes):
        from .video_file import open_file

        name = str(source) if isinstance(source, Path) else name
        return open_file(source, name, lambda total, fps: sample_frames(total, fps, rules, video.sample_fps))
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(f"a video array of shape {source.shape}", "Expected [frames, h, w, c]")
    if not isinstance(source, list | tuple | np.ndarray):
        raise InputError(f"a video cannot be a {type(source).__name__}", "Pass a file, a folder, or a list of frames")
    return listed(list(source), "", video, rules, url_rules)


def folder_frames(folder: Path) -> list[Path]:
    """The images of a folder; `frame2.png` comes before `frame10.png`."""
    suffixes = PIL.Image.registered_extensions()
    paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no images in this folder, a video of 0 frames", "Pass a folder of frames")
    return sorted(paths, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]


def listed(sources: Sequence[Source], where: str, video: Video, rules: FrameRules, url_rules: UrlRules) -> Clip:
    """A video whose frames are images; `where` begins its errors."""
    indices = sample_frames(len(sources), video.fps, rules, video.sample_fps)
    if not len(indices):
        return Clip(1, 1, video.fps, indices, iter(()))
    first = open_image(sources[indices[0]], url_rules)

    def frames() -> Frames:
        yield first
        for index in indices[1:]:
            frame = open_image(sources[index], url_rules)
            if frame.size != first.size:
                sizes = " and ".join(f"{width}x{height}" for width, height in (first.size, frame.size))
                raise InputError(f"{where}a video whose frames have sizes {sizes}", "All frames must have one size")
            yield frame

    return Clip(first.height, first.width, video.fps, indices, frames())
