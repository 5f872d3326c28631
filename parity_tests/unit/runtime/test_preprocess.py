"""Sizes exactly, and pixels exactly, as transformers' PIL image processor has them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pil_reference
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_smart_resize

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime.pictures import preprocess
from qwen3vl_export.runtime.pictures.preprocess import PixelRules, read_pixel_rules, smart_resize, smart_resize_video

from ...fixtures.paths import TINY
from ...fixtures.standin import tiny_facts
from ...harness.cases.picture_kinds import PHOTOGRAPH

OFFICIAL = {"min_pixels": 65536, "max_pixels": 16777216}
OFFICIAL_VIDEO = {"min_pixels": 4096, "max_pixels": 25165824}
BUDGETS = [OFFICIAL, {"min_pixels": 4096, "max_pixels": 262144}, {"min_pixels": 36864, "max_pixels": 36864}]
SIDES = st.integers(1, 9000)
FACTS = tiny_facts()
PROCESSOR = pil_reference.Qwen2VLImageProcessorPil.from_pretrained(TINY)
RULES = PixelRules(4096, 262144, (0.5,) * 3, (0.5,) * 3, 1 / 255, None)


@settings(max_examples=400, deadline=None)
@given(SIDES, SIDES, st.sampled_from(BUDGETS))
def test_smart_resize_equals_transformers(height: int, width: int, budget: dict[str, int]) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="one side is"):
            smart_resize(height, width, 32, **budget)
    else:
        assert smart_resize(height, width, 32, **budget) == pil_reference.smart_resize(height, width, 32, **budget)


@settings(max_examples=400, deadline=None)
@given(st.integers(2, 800), SIDES, SIDES, st.sampled_from([OFFICIAL_VIDEO, *BUDGETS]))
def test_smart_resize_of_videos_equals_transformers(
    frames: int, height: int, width: int, budget: dict[str, int]
) -> None:
    try:
        expected = video_smart_resize(frames, height, width, 2, 32, **budget)
    except ValueError:
        with pytest.raises(InputError, match="one side is"):
            smart_resize_video(frames, height, width, 32, 2, **budget)
    else:
        assert smart_resize_video(frames, height, width, 32, 2, **budget) == expected


def test_halves_round_to_even() -> None:
    assert smart_resize(80, 48, 32, 1, 10**6) == (64, 64)  # 2.5 and 1.5 merge cells, both to 2


@pytest.mark.parametrize("frames", [0, 1])
def test_a_video_needs_two_frames(frames: int) -> None:
    with pytest.raises(InputError, match=f"a video of {frames} frames"):
        smart_resize_video(frames, 64, 64, 32, 2, **OFFICIAL_VIDEO)


def drawn(width: int, height: int) -> PIL.Image.Image:
    photo = PIL.Image.open(PHOTOGRAPH).convert("RGB")
    return photo.resize((width, height), PIL.Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("width", "height"),
    [(451, 300), (16, 16), (32, 32), (64, 64), (63, 65), (640, 480), (480, 640), (1000, 7), (7, 1000), (3, 500), (1, 1),
     (150, 211), (301, 97), (512, 512), (1400, 900), (384, 384), (256, 256)],
)  # fmt: skip
def test_patches_equal_transformers(width: int, height: int) -> None:
    image = drawn(width, height)
    expected = PROCESSOR(images=[image], return_tensors="np")
    grid = preprocess.image_grid(height, width, RULES, FACTS)
    assert (1, *grid) == tuple(expected["image_grid_thw"][0])
    patches = preprocess.image_to_patches(image, grid, RULES, FACTS)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches, expected["pixel_values"])  # 0 of 255 steps apart


def test_channels_have_their_own_mean_and_std() -> None:
    rules = PixelRules(4096, 262144, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 1 / 255, None)
    processor = pil_reference.Qwen2VLImageProcessorPil.from_pretrained(
        TINY, image_mean=list(rules.mean), image_std=list(rules.std)
    )
    image = drawn(96, 64)
    expected = processor(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(preprocess.image_to_patches(image, (4, 6), rules, FACTS), expected)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_frames_are_laid_out_as_the_video_processor_does(count: int) -> None:
    frames = [drawn(96, 64).rotate(17 * index) for index in range(count)]
    video = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2)
    values = ((video.double() / 255).float() - 0.5) / 0.5
    expected, time, height, width = Qwen3VLVideoProcessor.patchify(None, values[None], 16, 2, 2)
    patches = preprocess.frames_to_patches(frames, (4, 6), RULES, FACTS)
    assert (time, height, width) == (math.ceil(count / 2), 4, 6)
    np.testing.assert_array_equal(patches, expected[0].numpy())


def test_a_patch_is_what_the_convolution_of_the_model_reads() -> None:
    """The layout against the definition: patches times a kernel equal that 3-D convolution over the frames."""
    frames = [drawn(96, 64), drawn(96, 64).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)]
    patches = torch.from_numpy(preprocess.frames_to_patches(frames, (4, 6), RULES, FACTS))
    kernel = torch.randn(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    video = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(3, 0, 1, 2).float() / 127.5 - 1
    plane = torch.nn.functional.conv3d(video[None], kernel, stride=(2, 16, 16))[0, 0, 0]  # [4, 6]
    blocks = plane.reshape(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(-1)  # 2x2 blocks in row order
    torch.testing.assert_close(patches @ kernel.reshape(-1), blocks, atol=1e-3, rtol=1e-4)


CONFIG: dict[str, Any] = {
    "size": {"shortest_edge": 4096, "longest_edge": 262144},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def test_rules_of_a_config() -> None:
    assert read_pixel_rules(CONFIG, FACTS, "p.json") == RULES
    older = CONFIG | {"min_pixels": 1024, "max_pixels": 2048}
    assert (
        read_pixel_rules(older, FACTS, "p.json").min_pixels,
        read_pixel_rules(older, FACTS, "p.json").max_pixels,
    ) == (
        1024,
        2048,
    )
    assert read_pixel_rules(CONFIG | {"cap_pixels_per_frame": True}, FACTS, "p.json").cap_frame_tokens == 768


@pytest.mark.parametrize(
    "change",
    [
        {"size": {}},
        {"size": None},
        {"patch_size": 14},
        {"size": {"shortest_edge": 9, "longest_edge": 3}},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": [0.5, 0.5, 1e-320]},
        {"image_std": [0.5, 0.5, 1e308]},
        {"image_mean": [0.5, 0.5, 1e308]},
        {"image_mean": [0.5, 0.5, 1e20]},
        {"rescale_factor": 1e308},
    ],
)
def test_a_config_that_cannot_be_used(change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"^p\.json: "):
        read_pixel_rules(CONFIG | change, FACTS, "p.json")


@pytest.mark.parametrize("frames", [2, 9, 64])
def test_the_cap_per_frame_equals_transformers(frames: int) -> None:
    rules = PixelRules(4096, 1048576, (0.5,) * 3, (0.5,) * 3, 1 / 255, cap_frame_tokens=20)
    options = {"size": {"shortest_edge": 4096, "longest_edge": 1048576}, "cap_pixels_per_frame": True}
    options |= {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}

    class Capped:
        max_video_tokens = 20

    expected = Qwen3VLVideoProcessor.get_num_of_video_patches(Capped(), frames, 480, 640, options)
    grid = preprocess.video_grid(frames, 480, 640, rules, FACTS)
    assert math.ceil(frames / 2) * math.prod(grid) == expected
