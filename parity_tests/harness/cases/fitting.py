"""What the cases are for one artifact: sizes by its pixel budget, and how many patches and tokens their pictures make.

Knows sizes; nothing about pixels or what is compared.
"""

from __future__ import annotations

from qwen3vl_export.contract import TEXT
from qwen3vl_export.runtime.retrieval import FRAMES, list_budget
from qwen3vl_export.runtime.sizing import Sizing

from .matrix import Case, Matrix
from .picture_kinds import PICTURE, parse


def fit_matrix(matrix: Matrix, sizing: Sizing) -> Matrix:
    """The matrix with the artifact's pixel budget, unless it has one."""
    if matrix.checkpoint is not None:
        return matrix
    return matrix.for_checkpoint(sizing.image_rules.min_pixels, sizing.image_rules.max_pixels)


def picture_tokens(case: Case, sizing: Sizing) -> list[int]:
    """The image and video tokens of each prompt of a case; its sizes are the artifact's (`Matrix.fit`)."""
    return [
        sum(sum(frames_of(picture, sizing)) for picture in prompt.pictures) // sizing.facts.merge_unit
        for prompt in case.prompts
    ]


def frames_of(picture: str, sizing: Sizing) -> list[int]:
    """The patches of each frame of a picture or video as a case names it; a frame stands for two of a video."""
    match = parse(PICTURE, picture)
    height, width = int(match["height"]), int(match["width"])
    if match["frames"] is None:
        pairs, grid = 1, sizing.of_image(height, width, None)
    else:
        frames, budget, pair = int(match["frames"]), None, sizing.facts.temporal_patch_size
        if sizing.facts.head != TEXT:
            frames, budget = min(frames, FRAMES.max_frames or frames), list_budget(sizing.facts)
        pairs = -(-frames // pair)
        grid = sizing.of_video(pairs * pair if budget else frames, height, width, budget, listed=True)
    return [grid[0] * grid[1]] * pairs
