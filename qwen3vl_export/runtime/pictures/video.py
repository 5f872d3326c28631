"""Opens videos from any source: files, URLs, folders, lists and arrays.

`frames` chooses the frames, `video_file` decodes files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...errors import InputError
from ..arrays import Ints
from .fetch import PUBLIC, UrlRules
from .frames import FrameChoice, FrameRules, Frames, SampledVideo, check_rate, choose_frames, sample_frames
from .images import Source, open_image
from .locate import locate
from .pixel_budget import PixelBudget
from .video_file import open_file

FrameList = list[Any] | tuple[Any, ...] | NDArray[Any]


@dataclass(frozen=True)
class Video:
    """A video in a message.

    `source` is a file (path, `http:`, `https:`, `file:` or `data:` URL, or its bytes), a folder of frames in the order
    of the numbers in their names, a list of frames (each any source of an `Image`), or an array [frames, h, w, c].
    """

    source: str | Path | bytes | Sequence[Source] | NDArray[Any]
    fps: float = 2.0  # frames per second of a folder, list or array; a file has its own rate
    sample_fps: float | None = None  # frames per second the model sees; None means the checkpoint's rate, normally 2
    budget: PixelBudget | None = None  # the size of its frames; None: as the checkpoint's processor chooses
    choice: FrameChoice | None = None  # the frames to see, in place of a rate
    positions: Sequence[int] | None = None  # of a list that was chosen from a longer video: where each frame was in it

    @property
    def is_list(self) -> bool:
        """Whether its frames are given one by one."""
        return not isinstance(self.source, str | bytes | Path)

    def select(self, total: int, fps: float, rules: FrameRules) -> Ints:
        """Which of `total` frames at `fps` frames per second the model sees: int64 [frames], ascending.

        Raises:
            InputError: frames that are not there, a rate that is not above 0, or several ways to choose frames.
        """
        given = [name for name in ("sample_fps", "choice", "positions") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"a video with {' and '.join(given)}", "Give one of them")
        check_rate(fps)
        if self.choice is not None:
            return choose_frames(total, fps, self.choice)
        if self.positions is not None:
            if len(self.positions) != total:
                raise InputError(f"{len(self.positions)} positions for {total} frames", "Give one for each frame")
            return np.arange(total)
        return sample_frames(total, fps, rules, self.sample_fps)


def open_video(video: Video, rules: FrameRules, url_rules: UrlRules = PUBLIC) -> SampledVideo:
    """A video whose sampled frames can be read.

    Raises:
        InputError: no such file or folder, no frames, frames of different sizes, a file that is damaged, truncated or
            of a codec that cannot be read, or PyAV is not installed.
    """
    source, name = video.source, "video bytes"
    if isinstance(source, str):
        source, name = locate(source, url_rules)
    if isinstance(source, Path) and os.path.isdir(source):  # unlike `Path.is_dir`, False for a name that is too long
        return open_frames(list_frames(source), f"{source}: ", video, rules, url_rules)
    if isinstance(source, Path | bytes):
        name = str(source) if isinstance(source, Path) else name
        return open_file(source, name, lambda total, fps: video.select(total, fps, rules))
    return open_frames(list(require_frames(source)), "", video, rules, url_rules)


def require_frames(source: Any) -> FrameList:
    """A list or array of frames, as it is.

    Raises:
        InputError: it is something else, or an array of another shape than [frames, h, w, c].
    """
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(f"a video array of shape {source.shape}", "Expected [frames, h, w, c]")
    if not isinstance(source, list | tuple | np.ndarray):
        raise InputError(f"a video cannot be a {type(source).__name__}", "Pass a file, a folder, or a list of frames")
    return source


def list_frames(folder: Path) -> list[Path]:
    """The images of a folder; `frame2.png` comes before `frame10.png`."""
    suffixes = PIL.Image.registered_extensions()
    paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no images in this folder, a video of 0 frames", "Pass a folder of frames")
    return sorted(paths, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]


def open_frames(
    sources: Sequence[Source], prefix: str, video: Video, rules: FrameRules, url_rules: UrlRules
) -> SampledVideo:
    """A video whose frames are images; error messages begin with `prefix`."""
    indices = video.select(len(sources), video.fps, rules)
    if not len(indices):
        return SampledVideo(1, 1, video.fps, indices, iter(()))
    first = open_image(sources[indices[0]], url_rules)

    def frames() -> Frames:
        yield first
        for index in indices[1:]:
            frame = open_image(sources[index], url_rules)
            if frame.size != first.size:
                sizes = " and ".join(f"{width}x{height}" for width, height in (first.size, frame.size))
                raise InputError(f"{prefix}a video whose frames have sizes {sizes}", "All frames must have one size")
            yield frame

    shown = indices if video.positions is None else np.array(video.positions, np.int64)
    return SampledVideo(first.height, first.width, video.fps, shown, frames())
