"""M-RoPE positions exactly as `Qwen3VLModel.get_rope_index` gives them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime.positions import next_positions, rope_index, split_frames

from ...fixtures.paths import TINY
from ...fixtures.standin import tiny_facts

FACTS = tiny_facts()
IMAGE, VIDEO, PAD = FACTS.image_token_id, FACTS.video_token_id, 512
START, END = FACTS.vision_start_token_id, FACTS.vision_end_token_id

Grids = list[tuple[int, int, int]]


def reference(
    ids: NDArray[np.int64], mask: NDArray[np.int64], images: Grids, videos: Grids
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What transformers computes; the method needs of its model only the configuration and another method."""
    model = SimpleNamespace(config=Qwen3VLConfig.from_pretrained(TINY))
    model.get_vision_position_ids = lambda *args, **kwargs: Qwen3VLModel.get_vision_position_ids(model, *args, **kwargs)
    kinds = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    positions, deltas = Qwen3VLModel.get_rope_index(
        model,
        torch.from_numpy(ids),
        torch.from_numpy(kinds),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.from_numpy(mask),
    )
    return positions.numpy(), deltas.numpy()


def image(height: int, width: int) -> list[int]:
    return [START, *[IMAGE] * (height * width // 4), END]


def video(time: int, height: int, width: int) -> list[int]:
    frame = [7, 8, START, *[VIDEO] * (height * width // 4), END]
    return [START, *frame * time, END]


def batch(*rows: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    length = max(map(len, rows))
    ids = np.array([[PAD] * (length - len(row)) + row for row in rows])
    mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def same(rows: list[list[int]], images: Grids, videos: Grids, ordered: Grids) -> None:
    ids, mask = batch(*rows)
    positions, deltas = rope_index(ids, mask, np.array(ordered, np.int64).reshape(-1, 3), FACTS)
    expected_positions, expected_deltas = reference(ids, mask, images, videos)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_array_equal(deltas, expected_deltas)
    assert positions.dtype == deltas.dtype == np.int64


def test_text() -> None:
    same([[1, 2, 3, 4]], [], [], [])


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (16, 16), (24, 24), (2, 40), (40, 2), (6, 10)])
def test_one_image(grid: tuple[int, int]) -> None:
    same([[1, 2, *image(*grid), 3, 4, 5]], [(1, *grid)], [], [(1, *grid)])


def test_several_images_and_a_video_between() -> None:
    row = [1, *image(4, 6), 2, *video(3, 4, 4), 3, *image(8, 2), 4]
    grids = [(1, 4, 6), (3, 4, 4), (1, 8, 2)]
    same([row], [grids[0], grids[2]], [grids[1]], grids)


def test_a_prompt_that_ends_in_an_image() -> None:
    same([[1, START, *[IMAGE] * 4]], [(1, 4, 4)], [], [(1, 4, 4)])


def test_left_padded_rows_with_different_pictures() -> None:
    rows = [[1, *image(4, 4), 2], [1, 2, 3], [*video(2, 4, 6), 5, *image(2, 2)], [1, *image(12, 4), *image(4, 12), 9]]
    grids = [(1, 4, 4), (2, 4, 6), (1, 2, 2), (1, 12, 4), (1, 4, 12)]
    same(rows, [grids[0], *grids[2:]], [grids[1]], grids)


def test_random_prompts() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        rows, images, videos, ordered = [], [], [], []
        for _ in range(rng.integers(1, 4)):
            row = [1]
            for _ in range(rng.integers(0, 4)):
                time, height, width = (int(n) for n in rng.integers(1, 7, 3))
                grid = (time if time % 2 == 0 else 1, 2 * height, 2 * width)
                row += video(*grid) if grid[0] > 1 else image(*grid[1:])
                row += [2] * int(rng.integers(0, 9))
                (videos if grid[0] > 1 else images).append(grid)
                ordered.append(grid)
            rows.append(row)
        same(rows, images, videos, ordered)


def test_the_next_position_follows_the_largest_not_the_count() -> None:
    ids, mask = batch([1, *image(16, 4), 2], [1, 2, 3])
    positions, deltas = rope_index(ids, mask, np.array([[1, 16, 4]]), FACTS)
    following = next_positions(deltas, mask.sum(axis=1, keepdims=True))
    assert following.shape == (3, 2, 1)
    np.testing.assert_array_equal(following[0, :, 0], positions.max(axis=(0, 2)) + 1)
    assert following[0, 0, 0] < mask[0].sum()  # 16 tokens took 8 positions


def test_frames_of_a_video_are_grids_of_their_own() -> None:
    grids = np.array([[1, 4, 4], [3, 2, 6]])
    np.testing.assert_array_equal(split_frames(grids), [[1, 4, 4], [1, 2, 6], [1, 2, 6], [1, 2, 6]])
    assert grids[1, 0] == 3  # the caller's array is left alone


@pytest.mark.parametrize(
    ("row", "grids"),
    [
        ([1, *image(4, 4)], [(1, 4, 6)]),
        ([1, *image(4, 4)], []),
        ([1, *image(4, 4)], [(1, 4, 4), (1, 4, 4)]),
        ([1, 2], [(1, 4, 4)]),
        ([*[IMAGE] * 8], [(1, 4, 4), (1, 4, 4)]),  # nothing between two pictures
    ],
)
def test_tokens_that_are_not_those_of_the_grids(row: list[int], grids: Grids) -> None:
    ids, mask = batch(row)
    with pytest.raises(InputError, match=r"image tokens"):
        rope_index(ids, mask, np.array(grids, np.int64).reshape(-1, 3), FACTS)
