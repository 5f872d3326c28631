"""Pictures to patches in the order Qwen3-VL wants, kept as bytes until the model normalizes them.

Knows resizing and patch order. Does not know questions or tokens. Shapes: P patches, M = P / 4 merged visual tokens.
"""

import math

import numpy as np
from PIL import Image

from parity_tests.harness.cases.scenes import COLORS, SHAPES, LabeledBox
from scripts.tiny_training.samples import Medium

PATCH, MERGE, TEMPORAL = 16, 2, 2
CELL = PATCH * MERGE  # 32 pixels: the side of one visual token
MIN_PIXELS, MAX_PIXELS = 64 * 64, 512 * 512
IGNORE = -100
# Per visual token: colour (0 none), shape (0 none), digit (0 none), cell of a 3x3 layout.
LABEL_SIZES = (1 + len(COLORS), 1 + len(SHAPES), 1 + 10, 9)

Grid = tuple[int, int, int]  # (frames / 2, patch rows, patch columns)


def smart_resize(width: int, height: int) -> tuple[int, int]:
    """The published rule with this checkpoint's limits."""
    new_width, new_height = (round(side / CELL) * CELL for side in (width, height))
    if new_width * new_height > MAX_PIXELS:
        shrink = math.sqrt(width * height / MAX_PIXELS)
        new_width, new_height = (max(CELL, math.floor(side / shrink / CELL) * CELL) for side in (width, height))
    elif new_width * new_height < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (width * height))
        new_width, new_height = (math.ceil(side * grow / CELL) * CELL for side in (width, height))
    return new_width, new_height


def to_patches(frames: tuple[Image.Image, ...]) -> tuple[np.ndarray, Grid]:
    """-> uint8 (P, 3 * 2 * 16 * 16), patches in 2x2 blocks. A single frame stands for both halves of its time step."""
    size = smart_resize(*frames[0].size)
    if len(frames) == 1:
        frames = frames * TEMPORAL
    resized = [frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
    pixels = np.stack([np.asarray(frame) for frame in resized])  # (frames, height, width, 3)
    steps, rows, columns = len(frames) // TEMPORAL, size[1] // PATCH, size[0] // PATCH
    pixels = pixels.reshape(steps, TEMPORAL, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    pixels = pixels.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(pixels.reshape(steps * rows * columns, -1)), (steps, rows, columns)


def token_labels(medium: Medium, grid: Grid) -> np.ndarray:
    """-> (M, 4) labels for the auxiliary heads, IGNORE where nothing is known."""
    rows, columns = grid[1] // MERGE, grid[2] // MERGE
    labels = np.full((rows, columns, len(LABEL_SIZES)), IGNORE)
    if medium.labelled:
        labels[..., :3] = 0
        covered = np.full((rows, columns), 0.06)  # an object counts where it covers more of the token than this
        for region in medium.regions:
            share = coverage(region, medium.frames[0].size, rows, columns)
            here = share > covered
            covered[here] = share[here]
            labels[here, :3] = label_of(region)
    cell_row, cell_column = (np.minimum(2, (np.arange(n) + 0.5) / n * 3).astype(int) for n in (rows, columns))
    labels[..., 3] = cell_row[:, None] * 3 + cell_column[None]
    return np.tile(labels.reshape(-1, len(LABEL_SIZES)), (grid[0], 1))


def coverage(region: LabeledBox, size: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """-> (rows, columns): the share of each visual token that the region's box covers."""
    left, top, right, bottom = region.box
    scale_x, scale_y = columns / size[0], rows / size[1]
    x, y = np.arange(columns), np.arange(rows)
    across = np.clip(np.minimum(x + 1, right * scale_x) - np.maximum(x, left * scale_x), 0, 1)
    down = np.clip(np.minimum(y + 1, bottom * scale_y) - np.maximum(y, top * scale_y), 0, 1)
    return down[:, None] * across[None]


def label_of(region: LabeledBox) -> tuple[int, int, int]:
    if region.thing is not None:
        return 1 + list(COLORS).index(region.thing.color), 1 + SHAPES.index(region.thing.shape), 0
    return 0, 0, 1 + region.digit if region.digit is not None else 0
