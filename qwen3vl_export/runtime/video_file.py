"""Frames out of video files, with PyAV (the `video` extra): counted first, decoded when they are asked for.

Numbers and pixels are those of transformers' `video_utils.read_video_pyav`: the first video stream, its frames in
order of presentation, its average rate, and PyAV's conversion to RGB. One departure: frames are turned upright as the
file says, as torchcodec turns them, which transformers prefers where it is installed. The count comes from the packets,
so that a file that was cut short is told from a whole one before anything is decoded.

Knows containers and codecs; nothing about which frames a model wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL.Image

from ..errors import InputError
from .arrays import Ints
from .frames import Clip, Frames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Formats that hold one video. FFmpeg also reads playlists, which name other files and addresses: not here.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,ivf,m4v"
MICROSECONDS = 1e6  # the unit of a container's times
SLACK_FRAMES = 2  # how much earlier than announced the last packet may end


@dataclass(frozen=True)
class Counted:
    """A whole file's frames: how many, and how many a second."""

    total: int
    fps: float


def open_file(source: Path | bytes, name: str, choose: Callable[[int, float], Ints]) -> Clip:
    """A video file, which errors call `name`; `choose` picks from its number of frames and its rate.

    Raises:
        InputError: as `video.open_video`.
    """
    counted = count(source, name)
    first = next(decoded(source, name, [0]))
    indices = choose(counted.total, counted.fps)
    return Clip(first.height, first.width, counted.fps, indices, decoded(source, name, indices.tolist()))


def count(source: Path | bytes, name: str) -> Counted:
    """Read every packet's header, and none of the pictures."""
    with opened(source, name) as (container, stream):
        announced, rate = stream.frames, stream.average_rate
        packets, shown, end = 0, 0, 0.0
        start = (container.start_time or 0) / MICROSECONDS
        for packet in container.demux():
            if packet.is_corrupt:
                raise truncated(name, f"its data ends in frame {packets}")
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream and packet.size:
                packets += 1
                shown += not packet.is_discard
        if packets < announced:
            raise truncated(name, f"it has {packets} of {announced} frames")
        if not shown:
            raise InputError(f"{name}: a video of 0 frames", "Pass a video with pictures")
        if not rate:
            raise InputError(f"{name}: its frame rate cannot be told", "Convert it: ffmpeg -i IN out.mp4")
        missing = (container.duration or 0) / MICROSECONDS - (end - start)
        if not announced and missing > SLACK_FRAMES / rate:
            raise truncated(name, f"its data ends {missing:.1f} seconds early")
        return Counted(shown, float(rate))


def decoded(source: Path | bytes, name: str, indices: Sequence[int]) -> Frames:
    """The frames at these positions, ascending, turned upright."""
    wanted = iter(indices)
    index = next(wanted, None)
    with opened(source, name) as (container, stream):
        stream.thread_type = "AUTO"
        for position, frame in enumerate(container.decode(stream)):
            if index is None:
                return
            if position == index:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counterclockwise
                yield PIL.Image.fromarray(np.ascontiguousarray(upright))
                index = next(wanted, None)
    if index is not None:
        raise truncated(name, f"frame {index} cannot be decoded")


@contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; what FFmpeg cannot do, here or while reading, becomes one line."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: video files need PyAV", "Install it: pip install 'qwen3vl-export[video]', or pass a frame folder"
        ) from error
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "pipe"}
    with file_of(source, name) as file:
        try:
            with av.open(file, mode="r", options=options) as container:
                if not container.streams.video:
                    raise InputError(f"{name}: no video in this file", "Pass a video, or Image(...) for a picture")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise InputError(
                        f"{name}: no decoder for its codec, or truncated", "Convert it: ffmpeg -i IN out.mp4"
                    )
                yield container, stream
        except (av.FFmpegError, OSError) as error:  # OSError: FFmpeg seeks to nowhere in a damaged file
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(f"{name}: not a video, damaged or truncated ({reason})", "Pass an intact file") from error


def file_of(source: Path | bytes, name: str) -> BinaryIO:
    """Opened here rather than by FFmpeg, which takes names such as `concat:` or `http:` for more than a file."""
    try:
        file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such video file", "Check the path") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})", "Pass a video file") from error
    return file


def truncated(name: str, what: str) -> InputError:
    return InputError(f"{name}: truncated or damaged video, {what}", "Copy or download it again")
