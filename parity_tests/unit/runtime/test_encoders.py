"""Which encoder sees which picture, and grids that none can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.contract import IMAGE_GRID_THW, PIXEL_VALUES, bucket_name
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.manifest import Encoder
from qwen3vl_export.runtime.encoders import BUCKET_RULE, check_patches, choose_grid, encode, fixed_grids

from ...fixtures.standin import ANY_GRID, artifact_without_graphs, tiny_facts

FACTS = tiny_facts()
SQUARES = ((8, 8), (16, 16), (24, 24))
MIXED = (*SQUARES, (16, 24), (24, 16), (8, 32))


@pytest.mark.parametrize(
    ("height", "width", "preferred", "chosen"),
    [
        (100, 100, (6, 6), (8, 8)),  # the smallest that suffices
        (128, 128, (8, 8), (8, 8)),
        (129, 129, (10, 10), (16, 16)),
        (384, 384, (24, 24), (24, 24)),
        (999, 999, (62, 62), (24, 24)),  # none suffices: the largest
        (200, 300, (12, 18), (16, 24)),
        (300, 200, (18, 12), (24, 16)),
        (100, 900, (6, 56), (8, 32)),  # widest there is, though too few patches
        (900, 100, (56, 6), (24, 16)),
        (110, 100, (6, 6), (8, 8)),
    ],
)
def test_closest_aspect_then_smallest_sufficient(
    height: int, width: int, preferred: tuple[int, int], chosen: tuple[int, int]
) -> None:
    assert choose_grid(MIXED, height, width, preferred) == chosen
    assert choose_grid(MIXED[::-1], height, width, preferred) == chosen  # the manifest's order does not matter


def test_one_grid_takes_everything_and_none_leaves_the_choice() -> None:
    assert choose_grid([(16, 16)], 10, 2000, (2, 126)) == (16, 16)
    assert choose_grid([], 10, 2000, (2, 126)) == (2, 126)


def test_fixed_grids_of_a_manifest() -> None:
    buckets = tuple(Encoder(bucket_name(*grid), grid) for grid in SQUARES)
    assert fixed_grids(artifact_without_graphs(encoders=ANY_GRID).manifest) == ()
    assert fixed_grids(artifact_without_graphs(encoders=buckets[:1], encoder_rule="fixed").manifest) == ((8, 8),)
    assert fixed_grids(artifact_without_graphs(encoders=buckets, encoder_rule=BUCKET_RULE).manifest) == SQUARES
    with pytest.raises(ArtifactError, match="unknown encoder_rule 'newest'"):
        fixed_grids(artifact_without_graphs(encoders=buckets, encoder_rule="newest").manifest)


def patches(rows: int) -> np.ndarray:
    """Patches whose first value counts them."""
    return np.repeat(np.arange(rows, dtype=np.float32)[:, None], FACTS.patch_dim, axis=1)


@pytest.mark.parametrize(
    ("rows", "grids", "message"),
    [
        (16, [[1, 3, 4]], "a grid of 1x3x4 patches. Height and width must be multiples of the merge size 2"),
        (16, [[1, 4, 5]], "a grid of 1x4x5 patches"),
        (0, [[1, 0, 4]], "a grid of 1x0x4 patches"),
        (0, [[0, 4, 4]], "a grid of 0x4x4 patches"),
        (15, [[1, 4, 4]], "pixel_values has 15 rows, image_grid_thw adds up to 16"),
        (16, [[1, 4]], "image_grid_thw has shape [1, 2]"),
    ],
)
def test_impossible_grids(rows: int, grids: list[list[int]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_patches(patches(rows), np.array(grids), FACTS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pixel_values", "grids", "message"),
    [
        (patches(16).astype(np.float64), [[1, 4, 4]], "pixel_values is float64, the encoder takes float32"),
        (patches(16).astype(np.float16), [[1, 4, 4]], "pixel_values is float16, the encoder takes float32"),
        (patches(16), np.array([[1, 4, 4]], np.int32), "image_grid_thw is int32, the encoder takes int64"),
        (patches(16)[:, :-1], [[1, 4, 4]], "Expected [num_patches, "),
    ],
)
def test_impossible_patches(pixel_values: np.ndarray, grids: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_patches(pixel_values, np.asarray(grids), FACTS)
    assert message in str(caught.value)


class Recorder:
    """Sessions that note every call and return as many features as the grids have tokens."""

    facts = FACTS

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[list[int]], list[float]]] = []

    def run(self, graph: str, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        pixels, grids = feeds[PIXEL_VALUES], feeds[IMAGE_GRID_THW]
        self.calls.append((graph, grids.tolist(), pixels[:, 0].tolist()))
        return [pixels[::4, :1]]


def test_a_free_encoder_sees_all_pictures_at_once() -> None:
    sessions = Recorder()
    pixels = patches(16 + 48)
    grids = np.array([[1, 4, 4], [2, 4, 6]])
    encode(sessions, ANY_GRID, pixels, grids)  # type: ignore[arg-type]
    assert [(graph, seen) for graph, seen, _ in sessions.calls] == [("vision_encoder", grids.tolist())]


def test_a_bound_encoder_sees_frame_after_frame() -> None:
    sessions = Recorder()
    encoders = (Encoder("a", (4, 4)), Encoder("b", (4, 6)))
    pixels = patches(48 + 16)
    features = encode(sessions, encoders, pixels, np.array([[2, 4, 6], [1, 4, 4]]))  # type: ignore[arg-type]
    assert [(graph, seen) for graph, seen, _ in sessions.calls] == [
        ("b", [[1, 4, 6]]),
        ("b", [[1, 4, 6]]),
        ("a", [[1, 4, 4]]),
    ]
    assert [row for _, _, rows in sessions.calls for row in rows] == list(range(64))
    assert features[:, 0].tolist() == list(range(0, 64, 4))
    with pytest.raises(InputError, match=r"no encoder for a grid of 8x8 patches\. The artifact has 4x4, 4x6"):
        encode(sessions, encoders, patches(64), np.array([[1, 8, 8]]))  # type: ignore[arg-type]
