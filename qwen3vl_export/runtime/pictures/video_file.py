"""Frames of video files, with PyAV (the `video` extra): counted first, decoded lazily.

Frame counts and pixels are those of transformers' `video_utils.read_video_pyav`: the first video stream, its frames in
presentation order, its average rate, and PyAV's conversion to RGB. One departure: the file's rotation is applied, as
torchcodec does, which transformers prefers where it is installed. Frames are counted from packets, so that a truncated
file is detected before anything is decoded. The size of frames is limited by `decode_limits`, in the header and, by the
decoder itself, in the data.

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

from ...errors import InputError, os_reason
from ..arrays import Ints
from .decode_limits import MAX_FRAME_PIXELS, check_size
from .frames import Frames, SampledVideo

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Formats that contain one video. Playlists, which FFmpeg also reads, are excluded: they name other files and addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,ivf,m4v"
MICROSECONDS = 1e6  # the unit of a container's times
SLACK_FRAMES = 2  # how many frames earlier than announced the last packet may end


@dataclass(frozen=True)
class FrameCount:
    """The number of frames of a whole file, and their rate per second."""

    total: int
    fps: float


def open_file(source: Path | bytes, name: str, choose: Callable[[int, float], Ints]) -> SampledVideo:
    """A video file, called `name` in errors.

    Args:
        choose: returns the positions of the frames to decode, ascending, from the number of frames and their rate.

    Raises:
        InputError: as `video.open_video`.
    """
    counted = count_frames(source, name)
    first = next(decode_frames(source, name, [0]))
    indices = choose(counted.total, counted.fps)
    return SampledVideo(first.height, first.width, counted.fps, indices, decode_frames(source, name, indices.tolist()))


def count_frames(source: Path | bytes, name: str) -> FrameCount:
    """Count frames from packet headers, without decoding."""
    with open_container(source, name) as (container, stream):
        announced, rate = stream.frames, stream.average_rate
        packets, shown, end = 0, 0, 0.0
        start = (container.start_time or 0) / MICROSECONDS
        for packet in container.demux():
            if packet.is_corrupt:
                raise truncation_error(name, f"its data ends in frame {packets}")
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is stream and packet.size:
                packets += 1
                shown += not packet.is_discard
        if packets < announced:
            raise truncation_error(name, f"it has {packets} of {announced} frames")
        if not shown:
            raise InputError(f"{name}: a video of 0 frames", "Pass a video with pictures")
        if not rate:
            raise InputError(f"{name}: unknown frame rate", "Convert it: ffmpeg -i IN out.mp4")
        missing = (container.duration or 0) / MICROSECONDS - (end - start)
        if not announced and missing > SLACK_FRAMES / rate:
            raise truncation_error(name, f"its data ends {missing:.1f} seconds early")
        return FrameCount(shown, float(rate))


def decode_frames(source: Path | bytes, name: str, indices: Sequence[int]) -> Frames:
    """The frames at these positions, ascending, with the file's rotation applied."""
    remaining = iter(indices)
    index = next(remaining, None)
    with open_container(source, name) as (container, stream):
        stream.thread_type = "AUTO"
        for position, frame in enumerate(container.decode(stream)):
            if index is None:
                return
            if position == index:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # counterclockwise
                yield PIL.Image.fromarray(np.ascontiguousarray(upright))
                index = next(remaining, None)
    if index is not None:
        raise truncation_error(name, f"frame {index} cannot be decoded")


@contextmanager
def open_container(source: Path | bytes, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; failures of FFmpeg, also inside the block, become an `InputError`."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: video files need PyAV", "Install it: pip install 'qwen3vl-export[video]', or pass a frame folder"
        ) from error
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "pipe"}
    with open_source(source, name) as file:
        try:
            with av.open(file, mode="r", options=options) as container:
                if not container.streams.video:
                    raise InputError(f"{name}: no video in this file", "Pass a video, or Image(...) for a picture")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise InputError(
                        f"{name}: no decoder for its codec, or truncated", "Convert it: ffmpeg -i IN out.mp4"
                    )
                check_size(stream.width, stream.height, name, MAX_FRAME_PIXELS)
                # For frames of other sizes than the header's. FFmpeg counts its padding, hence the factor.
                stream.codec_context.options = {"max_pixels": str(2 * MAX_FRAME_PIXELS)}
                yield container, stream
        except (av.FFmpegError, OSError) as error:  # OSError: an invalid seek in a damaged file
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(f"{name}: not a video, damaged or truncated ({reason})", "Pass an intact file") from error


def open_source(source: Path | bytes, name: str) -> BinaryIO:
    """Open the source in Python: FFmpeg would interpret names such as `concat:` or `http:` as protocols."""
    try:
        file: BinaryIO = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such video file", "Check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise InputError(f"{name}: cannot be read ({os_reason(error)})", "Pass a video file") from error
    return file


def truncation_error(name: str, detail: str) -> InputError:
    return InputError(f"{name}: truncated or damaged video, {detail}", "Copy or download it again")
