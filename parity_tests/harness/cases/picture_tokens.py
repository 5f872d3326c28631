"""How many tokens the pictures of a case make for an artifact, before any picture is drawn.

Knows sizes; nothing about pixels or what is compared.
"""

from __future__ import annotations

from qwen3vl_export.runtime.sizing import Sizing

from .matrix import Case
from .picture_kinds import PICTURE, parse


def picture_tokens(case: Case, sizing: Sizing) -> int:
    """The image and video tokens of all prompts of a case; its sizes are the artifact's (`Matrix.fit`)."""
    return sum(tokens_of(picture, sizing) for prompt in case.prompts for picture in prompt.pictures)


def tokens_of(picture: str, sizing: Sizing) -> int:
    """Of one picture or video as a case names it."""
    match, facts = parse(PICTURE, picture), sizing.facts
    height, width = int(match["height"]), int(match["width"])
    if match["frames"] is None:
        pairs, grid = 1, sizing.of_image(height, width, None)
    else:
        frames = int(match["frames"])
        pairs, grid = -(-frames // facts.temporal_patch_size), sizing.of_video(frames, height, width, None, listed=True)
    return pairs * grid[0] * grid[1] // facts.merge_unit
