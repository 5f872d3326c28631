"""Opens videos from any source: files, URLs, folders, lists and arrays.

`frames` chooses the frames, `video_file` decodes files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import InputError
from .fetch import PUBLIC, UrlRules
from .frames import FrameRules, Frames, SampledVideo, sample_frames
from .images import Source, open_image
from .locate import locate
from .video_file import open_file


@dataclass(frozen=True)
class Video:
    """A video in a message.

    `source` is a file (path, `http:`, `https:`, `file:` or `data:` URL, or its bytes), a folder of frames in the order
    of the numbers in their names, a list of frames (each any source of an `Image`), or an array [frames, h, w, c].
    """

    source: str | Path | bytes | Sequence[Source] | NDArray[Any]
    fps: float = 2.0  # frames per second of a folder, list or array; a file has its own rate
    sample_fps: float | None = None  # frames per second the model sees; None means the checkpoint's rate, normally 2


def open_video(video: Video, rules: FrameRules, url_rules: UrlRules = PUBLIC) -> SampledVideo:
    """A video whose sampled frames can be read.

    Raises:
        InputError: no such file or folder, no frames, frames of different sizes, a file that is damaged, truncated or
            of a codec that cannot be read, or PyAV is not installed.
    """
    source, name = video.source, "video bytes"
    if isinstance(source, str):
        source, name = locate(source, url_rules)
    if isinstance(source, Path) and source.is_dir():
        return open_frames(list_frames(source), f"{source}: ", video, rules, url_rules)
    if isinstance(source, Path | bytes):
        name = str(source) if isinstance(source, Path) else name
        return open_file(source, name, lambda total, fps: sample_frames(total, fps, rules, video.sample_fps))
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(f"a video array of shape {source.shape}", "Expected [frames, h, w, c]")
    if not isinstance(source, list | tuple | np.ndarray):
        raise InputError(f"a video cannot be a {type(source).__name__}", "Pass a file, a folder, or a list of frames")
    return open_frames(list(source), "", video, rules, url_rules)


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
    indices = sample_frames(len(sources), video.fps, rules, video.sample_fps)
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

    return SampledVideo(first.height, first.width, video.fps, indices, frames())
