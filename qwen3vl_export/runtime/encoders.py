"""Chooses the vision encoder for each picture and runs it: patches to features.

An artifact has either one encoder that takes any grid (all pictures go through it in one call), or one or more
encoders each bound to a single grid (every picture is resized to one of those grids, and every picture and every
frame of a video is a separate call: exact, because attention never leaves a frame).

**The bucket rule**, `closest-aspect-then-smallest-sufficient`: keep the grids whose shape is closest to the picture's,
by `|log(grid aspect / picture aspect)|`; of those take the smallest with at least as many patches as `smart_resize`
would give the picture; if none has that many, the largest.

Knows grids, pixels and graphs; nothing about prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..contract import BUCKET_RULE, IMAGE_FEATURES, IMAGE_GRID_THW, PIXEL_VALUES, Facts
from ..errors import ArtifactError, InputError
from ..manifest import Encoder, Manifest
from .arrays import Floats, Ints
from .decoder import no_features
from .session import Sessions

SAME_ASPECT = 1e-9  # aspect ratios whose logarithms differ by less are equal

Grid = tuple[int, int]


def fixed_grids(manifest: Manifest) -> tuple[Grid, ...]:
    """The (h, w) patch grids the artifact is bound to; empty if one of its encoders takes any grid.

    Raises:
        ArtifactError: several grids and an unknown rule to choose among them.
    """
    if any(encoder.grid is None for encoder in manifest.encoders):
        return ()
    grids = tuple(encoder.grid for encoder in manifest.encoders if encoder.grid is not None)
    if len(grids) > 1 and manifest.encoder_rule != BUCKET_RULE:
        raise ArtifactError(f"manifest.json: unknown encoder_rule {manifest.encoder_rule!r}", "Update qwen3vl-export")
    return grids


def choose_grid(grids: Sequence[Grid], height: int, width: int, preferred: Grid) -> Grid:
    """The (h, w) patch grid for a picture of `height` x `width` pixels.

    Args:
        grids: the fixed grids to choose from, by the bucket rule; if empty, the result is `preferred`.
        preferred: the grid that `smart_resize` gives this picture.
    """
    if not grids:
        return preferred
    distance = {grid: abs(math.log(grid[1] / grid[0]) - math.log(width / height)) for grid in grids}
    nearest = min(distance.values())
    closest = sorted(
        (grid for grid in grids if distance[grid] - nearest < SAME_ASPECT), key=lambda grid: (math.prod(grid), grid)
    )
    return next((grid for grid in closest if math.prod(grid) >= math.prod(preferred)), closest[-1])


def grids_within(grids: Sequence[Grid], low: float, high: float, facts: Facts) -> tuple[Grid, ...]:
    """Those of an artifact's fixed grids whose pictures have `low` to `high` pixels.

    Raises:
        InputError: there are grids, and none of them is left.
    """
    sizes = {grid: math.prod(grid) * facts.patch_size**2 for grid in grids}
    left = tuple(grid for grid, pixels in sizes.items() if low <= pixels <= high)
    if grids and not left:
        raise InputError(
            f"no picture of {low:.0f} to {high:.0f} pixels is possible",
            f"The artifact has fixed sizes of {', '.join(map(str, sorted(set(sizes.values()))))} pixels",
        )
    return left


def check_patches(pixel_values: Floats, grid_thw: Ints, facts: Facts) -> None:
    """Check the inputs of an encoder.

    Args:
        pixel_values: float32 [P, patch_dim].
        grid_thw: int64 [I, 3].

    Raises:
        InputError: a wrong dtype or shape, a side that is not a multiple of the merge size, or a number of patches
            that is not the sum over the grids.
    """
    for name, array, dtype in ((PIXEL_VALUES, pixel_values, np.float32), (IMAGE_GRID_THW, grid_thw, np.int64)):
        if array.dtype != dtype:
            expected = np.dtype(dtype).name
            raise InputError(
                f"{name} is {array.dtype}, the encoder takes {expected}", f"Pass {name}.astype({expected!r})"
            )
    if pixel_values.ndim != 2 or pixel_values.shape[1] != facts.patch_dim:
        raise InputError(
            f"{PIXEL_VALUES} has shape {list(pixel_values.shape)}", f"Expected [num_patches, {facts.patch_dim}]"
        )
    if grid_thw.ndim != 2 or grid_thw.shape[1] != 3:
        raise InputError(f"{IMAGE_GRID_THW} has shape {list(grid_thw.shape)}", "Expected [num_images, 3]")
    merge = facts.spatial_merge_size
    for time, height, width in grid_thw.tolist():
        if min(time, height, width) < 1 or height % merge or width % merge:
            raise InputError(
                f"{IMAGE_GRID_THW}: a grid of {time}x{height}x{width} patches",
                f"Height and width must be multiples of the merge size {merge}, and all three above 0",
            )
    if (total := int(grid_thw.prod(axis=1).sum())) != len(pixel_values):
        raise InputError(
            f"{PIXEL_VALUES} has {len(pixel_values)} rows, {IMAGE_GRID_THW} adds up to {total}",
            "Pass the patches and grids of the same pictures",
        )


def encode(sessions: Sessions, encoders: Sequence[Encoder], pixel_values: Floats, grid_thw: Ints) -> Floats:
    """Features of all pictures, [sum of t*h*w / 4, W], in the order of `grid_thw`.

    Args:
        pixel_values: float32 [P, patch_dim].
        grid_thw: int64 [I, 3]; if it has no rows, no encoder is called.

    Raises:
        InputError: as `check_patches`, or a grid that no encoder of the artifact is bound to.
    """
    facts = sessions.facts
    check_patches(pixel_values, grid_thw, facts)
    if not len(grid_thw):
        return no_features(sessions)
    for encoder in encoders:
        if encoder.grid is None:
            return run_encoder(sessions, encoder.graph, pixel_values, grid_thw)
    graphs = {encoder.grid: encoder.graph for encoder in encoders}
    features, start = [], 0
    for time, height, width in grid_thw.tolist():
        if (height, width) not in graphs:
            available = ", ".join(f"{grid[0]}x{grid[1]}" for grid in graphs if grid is not None)
            raise InputError(f"no encoder for a grid of {height}x{width} patches", f"The artifact has {available}")
        for _ in range(time):
            patches = pixel_values[start : start + height * width]
            features.append(run_encoder(sessions, graphs[height, width], patches, np.array([[1, height, width]])))
            start += height * width
    return np.concatenate(features)


def run_encoder(sessions: Sessions, graph: str, pixel_values: Floats, grid_thw: Ints) -> Floats:
    features: Floats = sessions.run(graph, {PIXEL_VALUES: pixel_values, IMAGE_GRID_THW: grid_thw}, [IMAGE_FEATURES])[0]
    return features
