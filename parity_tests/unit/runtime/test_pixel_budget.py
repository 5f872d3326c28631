"""Sizes and frames that messages ask for, and the pixel budget of `Qwen3VL.load`.

The expected sizes and frames are what qwen-vl-utils 0.0.14 gave when it was run with `image_patch_size=16`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_export.contract import BUCKET_RULE
from qwen3vl_export.errors import InputError
from qwen3vl_export.manifest import Encoder
from qwen3vl_export.runtime import FrameChoice, Image, PixelBudget, Video
from qwen3vl_export.runtime.pictures.frames import FrameRules, choose_frames, line_of_frames
from qwen3vl_export.runtime.pictures.pixel_budget import frame_size, image_size
from qwen3vl_export.runtime.pictures.video import open_video
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts.messages import as_messages

from ...fixtures.standin import artifact_without_graphs
from ...fixtures.videos import moving_frames

K = 1024  # pixels of a token
IMAGES: list[tuple[int, int, dict[str, int], tuple[int, int]]] = [
    (300, 451, {"max_pixels": 50176}, (160, 256)),
    (300, 451, {"min_pixels": 50176, "max_pixels": 50176}, (160, 256)),
    (300, 451, {"min_pixels": 200704}, (384, 576)),
    (3024, 4032, {"max_pixels": 1003520}, (864, 1152)),
    (3024, 4032, {"min_pixels": 65536}, (3008, 4032)),
    (10, 12, {"max_pixels": 9999}, (64, 96)),
    (10, 12, {"min_pixels": 1}, (32, 32)),
    (300, 451, {"resized_height": 280, "resized_width": 420}, (288, 416)),
    (300, 451, {"resized_height": 1, "resized_width": 70}, (32, 544)),
    (7, 1000, {"max_pixels": 262144}, (32, 992)),
    (80, 48, {"min_pixels": 4096, "max_pixels": 4096}, (64, 64)),
]
VIDEOS: list[tuple[int, int, int, dict[str, int], bool, tuple[int, int]]] = [
    (20, 720, 1280, {"max_pixels": 360 * 420}, False, (288, 512)),
    (768, 1080, 1920, {"min_pixels": 4 * K, "max_pixels": 256 * K, "total_pixels": 20480 * K}, False, (160, 288)),
    (100, 1080, 1920, {"total_pixels": 20480 * K}, False, (480, 832)),
    (4, 64, 96, {"min_pixels": 4096}, False, (64, 96)),
    (600, 1080, 1920, {"min_pixels": 4096}, False, (448, 832)),
    (10, 480, 640, {"resized_height": 100, "resized_width": 200}, False, (96, 192)),
    (10, 480, 640, {"max_pixels": 10**7}, False, (480, 640)),
    (4, 300, 451, {"max_pixels": 200000}, True, (320, 480)),
    (4, 100, 150, {"min_pixels": 30000}, True, (160, 224)),
    (10, 2160, 3840, {"max_pixels": 30000000}, True, (640, 1152)),
    (6, 480, 640, {"resized_height": 100, "resized_width": 200}, True, (96, 192)),
]
FRAMES: list[tuple[int, float, dict[str, Any], list[int]]] = [
    (37, 10.0, {"fps": 2.0}, [0, 7, 14, 22, 29, 36]),
    (37, 10.0, {"fps": 1}, [0, 12, 24, 36]),
    (300, 29.97, {"fps": 0.5}, [0, 100, 199, 299]),
    (300, 30.0, {"nframes": 7}, [0, 43, 85, 128, 171, 214, 256, 299]),
    (300, 30.0, {"nframes": 9}, [0, 43, 85, 128, 171, 214, 256, 299]),
    (3000, 30.0, {"max_frames": 13}, [0, 273, 545, 818, 1091, 1363, 1636, 1908, 2181, 2454, 2726, 2999]),
    (300, 30.0, {"min_frames": 5, "fps": 0.1}, [0, 60, 120, 179, 239, 299]),
    (300, 30.0, {"video_start": 2.5, "video_end": 5.02}, [75, 100, 125, 150]),
    (300, 30.0, {"video_start": 9.9}, [297, 299]),
    (300, 30.0, {"video_end": 0.2, "nframes": 2}, [0, 6]),
    (300, 30.0, {"video_end": 99.0, "fps": 0.4}, [0, 100, 199, 299]),
    (7, 30.0, {"fps": 60}, [0, 1, 2, 4, 5, 6]),
]
RULES = FrameRules(2.0, None, 4, 768)
TINY = artifact_without_graphs()  # allows 4,096 to 262,144 pixels, and a context of 4,096 tokens
PREPARER = Preparer(TINY)
PHOTO = np.zeros((300, 451, 3), np.uint8)


@pytest.mark.parametrize(("height", "width", "options", "expected"), IMAGES)
def test_the_size_of_a_picture_is_that_of_qwen_vl_utils(
    height: int, width: int, options: dict[str, int], expected: tuple[int, int]
) -> None:
    assert image_size(height, width, PixelBudget(**options), 2**24, 32) == expected


@pytest.mark.parametrize(("frames", "height", "width", "options", "listed", "expected"), VIDEOS)
def test_the_size_of_a_frame_is_that_of_qwen_vl_utils(
    frames: int, height: int, width: int, options: dict[str, int], listed: bool, expected: tuple[int, int]
) -> None:
    assert frame_size(frames, height, width, PixelBudget(**options), None, 32, listed) == expected


@pytest.mark.parametrize(("total", "fps", "options", "expected"), FRAMES)
def test_the_frames_of_a_file_are_those_of_qwen_vl_utils(
    total: int, fps: float, options: dict[str, Any], expected: list[int]
) -> None:
    assert choose_frames(total, fps, FrameChoice(**options)).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 200_000), st.integers(1, 384))
def test_frames_are_spaced_as_torch_spaces_them(first: int, length: int, pairs: int) -> None:
    """`torch.linspace` computes in float32, which moves halves."""
    expected = torch.linspace(first, first + length, 2 * pairs).round().long()
    assert line_of_frames(first, first + length, 2 * pairs).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nframes": 400}, "400 frames of 300 are asked for. Ask for 2 to 300"),
        ({"nframes": 1}, "0 frames of 300 are asked for"),
        ({"max_frames": 1}, "0 frames of 300 are asked for"),
        ({"video_start": 9.99}, "no two frames between second 9.99 and second 10 of a video of 10.00 seconds"),
        ({"video_start": 5, "video_end": 4}, "no two frames between second 5 and second 4"),
    ],
)
def test_frames_that_are_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_frames(300, 30.0, FrameChoice(**options))


def test_limits_that_exclude_each_other() -> None:
    with pytest.raises(InputError, match="min_pixels is 131072, above max_pixels, 50176"):
        frame_size(8, 300, 451, PixelBudget(max_pixels=50176), None, 32, False)  # as qwen-vl-utils
    with pytest.raises(InputError, match="total_pixels is for videos"):
        image_size(300, 451, PixelBudget(total_pixels=50176), 2**24, 32)
    with pytest.raises(InputError, match="one side is 300 times the other"):
        image_size(10, 3000, PixelBudget(max_pixels=50176), 2**24, 32)


# In a prompt.


def grid_of(preparer: Preparer, part: Any) -> list[int]:
    (grid,) = preparer([as_messages([part, "What?"])]).image_grid_thw.tolist()
    assert preparer.picture(Image(PHOTO)).tokens > 0
    return list(grid)


def test_a_message_gives_its_pictures_a_size() -> None:
    part = {"type": "image", "image": PHOTO}
    assert grid_of(PREPARER, part) == [1, 18, 28]
    assert grid_of(PREPARER, part | {"max_pixels": 50176}) == [1, 10, 16]
    assert grid_of(PREPARER, part | {"resized_height": 64, "resized_width": 96}) == [1, 4, 6]
    assert grid_of(PREPARER, part | {"max_pixels": 10**9, "min_pixels": 262144}) == grid_of(
        PREPARER, part | {"min_pixels": 262144, "max_pixels": 262144}
    )  # the checkpoint's limit is the lower one
    for options, message in (
        ({"resized_height": 640, "resized_width": 640}, "make 409600 pixels, at most 262144 are possible here"),
        ({"min_pixels": 10**6}, "min_pixels is 1000000, above max_pixels, 262144"),
    ):
        with pytest.raises(InputError, match=message):
            PREPARER([as_messages([part | options])])


def test_a_message_gives_its_videos_a_size_and_frames() -> None:
    clip = moving_frames(9, 128, 192)
    assert grid_of(PREPARER, {"video": clip, "fps": 2}) == [5, 8, 12]
    sized = {"video": clip, "sample_fps": 2, "min_pixels": 4096, "max_pixels": 8192}
    assert grid_of(PREPARER, sized) == [5, 4, 6]
    assert grid_of(PREPARER, {"video": clip[:1], "sample_fps": 1, "min_pixels": 4096}) == [1, 8, 12]  # one frame, twice
    with pytest.raises(InputError, match=r"a size of \d+ tokens, the context holds 4096"):
        PREPARER([as_messages([{"video": clip, "resized_height": 1024, "resized_width": 2048}])])


def test_the_times_of_frames_that_were_chosen_before() -> None:
    video = {"video": moving_frames(3), "fps": 10, "frames_indices": [5, 15, 40], "total_num_frames": 99}
    text = PREPARER([as_messages([video])]).texts[0]  # (0.5 + 1.5) / 2, and the third frame twice
    assert re.findall(r"<([\d.]+) seconds>", text) == ["1.0", "4.0"]
    clip = open_video(Video(moving_frames(40), 10.0, choice=FrameChoice(nframes=4, video_start=2)), RULES)
    assert clip.indices.tolist() == [20, 26, 33, 39] and len(list(clip.frames)) == 4


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video(moving_frames(4), sample_fps=1, choice=FrameChoice(fps=1)), "a video with sample_fps and choice"),
        (Video(moving_frames(4), positions=(1, 2)), "2 positions for 4 frames"),
        (Video(moving_frames(4), 0, choice=FrameChoice(fps=1)), "a video of 0 frames per second"),
    ],
)
def test_videos_whose_frames_cannot_be_chosen(video: Video, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PREPARER([as_messages([video])])


def test_a_bound_artifact_keeps_to_the_limits_or_refuses() -> None:
    buckets = tuple(Encoder(f"b{h}x{w}", (h, w)) for h, w in ((8, 8), (16, 16), (8, 16)))
    preparer = Preparer(artifact_without_graphs(encoders=buckets, encoder_rule=BUCKET_RULE))
    part = {"type": "image", "image": PHOTO}
    assert grid_of(preparer, part) == [1, 8, 16]
    assert grid_of(preparer, part | {"max_pixels": 20000}) == [1, 8, 8]
    assert grid_of(preparer, part | {"min_pixels": 40000}) == [1, 16, 16]
    assert grid_of(preparer, part | {"resized_height": 256, "resized_width": 256}) == [1, 16, 16]
    for options, message in (
        (
            {"max_pixels": 9999},
            "no picture of 0 to 9999 pixels is possible. The artifact has fixed sizes of 16384, 32768",
        ),
        ({"resized_height": 64, "resized_width": 64}, "no encoder for pictures of 64x64 pixels"),
    ):
        with pytest.raises(InputError, match=message):
            preparer([as_messages([part | options])])
    limited = Preparer(preparer.artifact, max_pixels=20000)
    assert grid_of(limited, part) == [1, 8, 8]
    with pytest.raises(InputError, match="no picture of 0 to 5000 pixels is possible"):
        Preparer(preparer.artifact, max_pixels=5000)


# Of the whole model.


def test_a_pixel_budget_at_load() -> None:
    small = Preparer(TINY, max_pixels=50176)
    part = {"type": "image", "image": PHOTO}
    assert grid_of(small, part) == [1, 10, 16]
    assert grid_of(Preparer(TINY, min_pixels=200704), part) == [1, 24, 36]
    assert grid_of(small, part | {"max_pixels": 200000}) == [1, 10, 16]  # the lower limit holds
    assert grid_of(small, {"video": moving_frames(4, 512, 512)}) == [2, 14, 14]
    assert grid_of(small, {"video": moving_frames(4, 512, 512), "sample_fps": 1, "min_pixels": 9999}) == [2, 14, 14]
    with pytest.raises(InputError, match="make 65536 pixels, at most 50176 are possible here"):
        small([as_messages([part | {"resized_height": 256, "resized_width": 256}])])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 262145}, "max_pixels is 262145, the checkpoint allows 4096 to 262144"),
        ({"max_pixels": 4095}, "max_pixels is 4095, the checkpoint allows"),
        ({"min_pixels": 4095}, "min_pixels is 4095, the checkpoint allows"),
        ({"min_pixels": 9999, "max_pixels": 9998}, "min_pixels is 9999, above max_pixels, 9998"),
        ({"max_pixels": 0}, "max_pixels is 0. Use a whole number from 1"),
    ],
)
def test_a_pixel_budget_beyond_the_checkpoint(limits: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preparer(TINY, **limits)
