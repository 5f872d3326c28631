"""Where each patch sits: rows, columns, interpolation taps, rotary angles and attention segments from `image_grid_thw`.

Vectorised over all patches of all images, so that a traced graph has no loop and no constant size. Everything is int64
or float32 whatever the model's dtype: rounding the source coordinate to half precision alone changes a feature by 2 %.

Legend: P patches, I images (a video is one row of the grid), M attention segments. Knows nothing about weights.
Source: transformers `vision_utils.get_vision_position_ids`, `get_vision_interpolation_indices_and_weights`,
`get_vision_cu_seqlens`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PLACEHOLDER_DOMAIN = "qwen3vl"
GUARD = "Guard"
IMPOSSIBLE = 1 << 40  # added to a row count to make it mismatch

QUERY_CHUNK = 512  # queries per attention segment of the portable target: bounds its memory to 512 x h*w scores


class Patches(NamedTuple):
    """Per patch, int64 [P]: its row and column in the frame's patch grid, and that grid's height and width."""

    row: Tensor
    column: Tensor
    height: Tensor
    width: Tensor


def guard_rows(x: Tensor, rows: Tensor, message: str) -> Tensor:
    """`x` unchanged, or a failure inside the graph, named `message`, if it does not have exactly `rows` rows.

    Traced as one placeholder op, so that no simplifier sees a reshape to the shape `x` already has; `lowering/` makes
    it that reshape.

    Args:
        x: [R, C], or [R, S, C] of any S but 0.
        rows: int64, one value: what R must be.
    """
    shape = torch.cat([rows.reshape(1), torch.tensor([*[-1] * (x.ndim - 2), x.shape[-1]])])
    return torch.onnx.ops.symbolic(
        f"{PLACEHOLDER_DOMAIN}::{GUARD}", (x, shape), {"message": message}, dtype=x.dtype, shape=x.shape, version=1
    )


def guard_patches(
    pixel_values: Tensor, image_grid_thw: Tensor, merge: int, bound: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Both inputs unchanged, or a failure inside the graph if the grid is impossible or does not describe the pixels.

    Args:
        pixel_values: float [P, patch_dim].
        image_grid_thw: int64 [I, 3] of (t, h, w) in patches; t >= 1, h and w positive multiples of `merge`,
            sum(t*h*w) = P, I >= 1.
        bound: the only (h, w) a fixed encoder takes, or None.
    """
    t, h, w = image_grid_thw.unbind(1)
    bad = (t < 1) | (h < 1) | (w < 1) | (h % merge > 0) | (w % merge > 0)
    message = f"image_grid_thw needs at least one row, all entries positive, height and width multiples of {merge}"
    if bound is not None:
        bad = bad | (t != 1) | (h != bound[0]) | (w != bound[1])
        message = f"this encoder takes one image of {bound[0]}x{bound[1]} patches, image_grid_thw says otherwise"
    images = image_grid_thw.shape[0]
    no_images = (torch.ones(1, dtype=torch.int64) * images < 1).to(torch.int64)
    image_grid_thw = guard_rows(image_grid_thw, (bad.sum() + no_images) * IMPOSSIBLE + images, message)
    total = image_grid_thw.prod(1).sum()
    return guard_rows(pixel_values, total, "image_grid_thw does not add up to the rows of pixel_values"), image_grid_thw


def _divide(x: Tensor, divisor: Tensor | int) -> Tensor:
    """`x // divisor` of integers that are not negative, of the shape of `x`: one node.

    PyTorch's own floor division becomes nine nodes, which correct the quotients of negative numbers.
    """
    return torch.onnx.ops.symbolic("Div", (x, torch.as_tensor(divisor)), dtype=x.dtype, shape=x.shape)


def locate_patches(image_grid_thw: Tensor, num_patches: int, merge: int) -> Patches:
    """Row and column of every patch; patches are ordered frame by frame in `merge` x `merge` blocks.

    Args:
        image_grid_thw: int64 [I, 3].
        num_patches: P.
        merge: side of a merge block (2).
    """
    t, h, w = image_grid_thw.unbind(1)
    ends = (t * h * w).cumsum(0)
    index = torch.arange(num_patches)
    image = (index[:, None] >= ends[None, :]).to(torch.int64).sum(1)  # [P]; P x I booleans, no data-dependent shape
    height, width = h.index_select(0, image), w.index_select(0, image)
    start = (ends - t * h * w).index_select(0, image)
    within = (index - start) % (height * width)  # position inside its frame
    block, inner = _divide(within, merge**2), within % merge**2
    blocks_per_row = _divide(width, merge)
    return Patches(
        row=_divide(block, blocks_per_row) * merge + _divide(inner, merge),
        column=block % blocks_per_row * merge + inner % merge,
        height=height,
        width=width,
    )


def _axis_taps(index: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower tap, upper tap (int64 [P]) and the upper tap's weight (float32 [P]): linspace(0, side-1, size)[index]."""
    source = index.to(torch.float32) * (side - 1) / (size - 1).clamp(min=1)
    floor = source.floor()
    lower = floor.to(torch.int64)
    return lower, (lower + 1).clamp(max=side - 1), source - floor


def interpolation_taps(patches: Patches, side: int) -> tuple[Tensor, Tensor]:
    """Four rows of the `side` x `side` position table per patch (int64 [P, 4]) and their weights (float32 [P, 4]).

    Bilinear with align_corners=True, as `F.interpolate` resamples a table of learned positions.
    """
    top, bottom, down = _axis_taps(patches.row, patches.height, side)
    left, right, across = _axis_taps(patches.column, patches.width, side)
    taps = torch.stack([top * side + left, top * side + right, bottom * side + left, bottom * side + right], dim=1)
    up, back = 1 - down, 1 - across
    return taps, torch.stack([up * back, up * across, down * back, down * across], dim=1)


def rotary_tables(patches: Patches, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [P, head_dim / 2], of the axial rotary embedding: row angles, then column angles.

    Args:
        inv_freq: float32 [head_dim / 4].
    """
    angles = torch.cat([patches.row[:, None] * inv_freq, patches.column[:, None] * inv_freq], dim=1)
    return angles.cos(), angles.sin()


def image_segments(image_grid_thw: Tensor) -> Tensor:
    """int64 [I, 3] of (first patch, end patch, frames): an image's frames attend as a batch, each to itself."""
    counts = image_grid_thw.prod(1)
    ends = counts.cumsum(0)
    return torch.stack([ends - counts, ends, image_grid_thw[:, 0]], dim=1)


def chunk_segments(image_grid_thw: Tensor, chunk: int = QUERY_CHUNK) -> Tensor:
    """int64 [M, 4] of (first query, end query, first key, end key): `chunk` queries of a frame over all its keys.

    M = sum of t * ceil(h*w / chunk) depends on the values of the grid.
    """
    t, h, w = image_grid_thw.unbind(1)
    area = h * w
    per_frame = (area + chunk - 1) // chunk
    items = t * per_frame
    ends = items.cumsum(0)
    total = ends[-1].item()
    torch._check(total >= 1)  # type: ignore[no-untyped-call]
    index = torch.arange(total)
    image = (index[:, None] >= ends[None, :]).to(torch.int64).sum(1)
    patch_start = (t * area).cumsum(0) - t * area
    start, chunks, area, patch_start = (x.index_select(0, image) for x in (ends - items, per_frame, area, patch_start))
    frame, part = (index - start) // chunks, (index - start) % chunks
    first_key = patch_start + frame * area
    end_key = first_key + area
    first_query = first_key + part * chunk
    return torch.stack([first_query, torch.minimum(first_query + chunk, end_key), first_key, end_key], dim=1)
