"""Three-axis positions (M-RoPE) of a prompt's tokens, as in transformers' `Qwen3VLModel.get_rope_index` (5.23).

Each text token advances all three axes by one. A picture of h x w patches occupies h/2 x w/2 positions: time is
constant, rows and columns count from where the text stopped, and the text after it continues at the larger side. Each
frame of a video counts as a separate picture, because timestamps are between them. Padding has position 0.

Knows token ids and grids; nothing about pixels or text.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..contract import Facts
from ..errors import InputError
from .arrays import Bools, Ints


def visual_tokens(input_ids: Ints, facts: Facts) -> Bools:
    """A mask of the image and video tokens, in the shape of `input_ids`."""
    return np.isin(input_ids, (facts.image_token_id, facts.video_token_id))


def split_frames(grid_thw: Ints) -> Ints:
    """int64 [I, 3] to [sum of t, 3]: one row of t = 1 for each frame."""
    frames = np.repeat(grid_thw, grid_thw[:, 0], axis=0)
    frames[:, 0] = 1
    return frames


def rope_index(input_ids: Ints, attention_mask: Ints, grid_thw: Ints, facts: Facts) -> tuple[Ints, Ints]:
    """Position ids int64 [3, B, S] and the rope delta of each row, int64 [B, 1].

    A row's next token has position `delta + number of its tokens so far`.

    Args:
        input_ids: int64 [B, S], padded on either side.
        attention_mask: int64 [B, S], 0 on padding.
        grid_thw: int64 [I, 3], the patches of every image and video in the order of their tokens, row after row.

    Raises:
        InputError: the image and video tokens do not match `grid_thw`.
    """
    positions = np.zeros((3, *input_ids.shape), np.int64)
    deltas = np.zeros((len(input_ids), 1), np.int64)
    frames = list(split_frames(grid_thw))
    used = 0
    for row, ids in enumerate(input_ids):
        is_token = attention_mask[row].astype(bool)
        pieces, start = [], 0
        for token_id, length in token_runs(ids[is_token], facts):
            if token_id is None:
                pieces.append(np.tile(np.arange(length) + start, (3, 1)))
                start += length
                continue
            grid = frames[used] if used < len(frames) else None
            piece = None if grid is None else picture_positions(start, grid, facts.spatial_merge_size)
            if grid is None or piece is None or piece.shape[1] != length:
                raise InputError(
                    f"row {row}: {length} consecutive image tokens, expected "
                    f"{0 if piece is None else piece.shape[1]} from the pictures' grids",
                    "Use the tokens that prepare() returns",
                )
            pieces.append(piece)
            start += int(max(grid[1:])) // facts.spatial_merge_size
            used += 1
        if not pieces:
            continue
        positions[:, row, is_token] = np.concatenate(pieces, axis=1)
        deltas[row] = positions[:, row, is_token].max() + 1 - is_token.sum()
    if used != len(frames):
        raise InputError(
            f"{len(frames)} pictures or frames, image tokens for {used}", "Use the tokens that prepare() returns"
        )
    return positions, deltas


def token_runs(ids: Ints, facts: Facts) -> list[tuple[int | None, int]]:
    """Consecutive tokens of one kind: (id, length) for image or video tokens, (None, length) for text."""
    kinds = np.where(visual_tokens(ids, facts), ids, -1)
    bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(ids)]
    return [
        (None if kinds[first] < 0 else int(kinds[first]), last - first)
        for first, last in pairwise(bounds)
        if last > first
    ]


def picture_positions(start: int, grid: Ints, merge: int) -> Ints:
    """int64 [3, h * w / merge**2]: time, row and column of each token of one picture, plus `start`."""
    rows, columns = int(grid[1]) // merge, int(grid[2]) // merge
    time = np.zeros((rows, columns), np.int64)
    row, column = np.indices((rows, columns))
    return start + np.stack((time, row, column)).reshape(3, -1)


def next_positions(deltas: Ints, lengths: Ints, count: int = 1) -> Ints:
    """Positions int64 [3, B, count] of the next tokens of each row, which are text.

    Args:
        deltas: int64 [B, 1], as `rope_index` returns them.
        lengths: int64 [B, 1], the number of tokens of each row, without padding.
    """
    return np.tile(deltas + lengths + np.arange(count), (3, 1, 1))
