"""Chooses the grid of patches of each picture and video.

The checkpoint's processor decides, or what a message asks for; both within the pixel budget of `Qwen3VL.load` and the
sizes an artifact is bound to.

Knows settings and sizes; nothing about pixels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from ..artifact import Artifact
from ..errors import InputError
from .encoders import Grid, choose_grid, fixed_grids, grids_within
from .pictures.pixel_budget import PixelBudget, Size, frame_size, image_size
from .pictures.preprocess import PixelRules, image_grid, narrow, read_pixel_rules, read_video_pixel_rules, video_grid

IMAGE_RULES = "preprocessor_config.json"
VIDEO_RULES = "video_preprocessor_config.json"


class Sizing:
    """The sizes of one artifact.

    Args:
        min_pixels: a picture is enlarged to at least this many pixels; None: the checkpoint's number.
        max_pixels: a picture, or a frame of a video, is reduced to at most this many; None: the checkpoint's number.

    Raises:
        ArtifactError: an unknown rule to choose among encoders.
        InputError: a number of pixels that the checkpoint, or the grids the artifact is bound to, do not allow.
    """

    def __init__(self, artifact: Artifact, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
        self.artifact = artifact
        self.facts = artifact.manifest.facts
        self.grids = fixed_grids(artifact.manifest)
        self.limits = PixelBudget(min_pixels, max_pixels)
        if self.limits != PixelBudget():
            self.image_rules = narrow(self.image_rules, min_pixels, max_pixels)
            self.grids = grids_within(self.grids, *self.limits.limits(1), self.facts)

    @cached_property
    def image_rules(self) -> PixelRules:
        return read_pixel_rules(self.artifact.json_file(IMAGE_RULES), self.facts, IMAGE_RULES)

    @cached_property
    def video_rules(self) -> PixelRules:
        rules = read_video_pixel_rules(self.artifact.json_file(VIDEO_RULES), self.facts, VIDEO_RULES)
        return replace(rules, max_frame_pixels=self.limits.max_pixels)

    @property
    def token_side(self) -> int:
        """The side in pixels of what becomes one token."""
        return self.facts.patch_size * self.facts.spatial_merge_size

    def of_image(self, height: int, width: int, budget: PixelBudget | None) -> Grid:
        """The grid (h, w), in patches, of a picture of `height` x `width` pixels.

        Raises:
            InputError: a size that is not possible.
        """
        if budget is None:
            return choose_grid(self.grids, height, width, image_grid(height, width, self.image_rules, self.facts))
        size = image_size(height, width, budget, self.image_rules.max_pixels, self.token_side)
        return self.as_asked(height, width, size, budget, frames=1)

    def of_video(self, frames: int, height: int, width: int, budget: PixelBudget | None, listed: bool) -> Grid:
        """The grid (h, w), in patches, of each of `frames` frames; `listed` as for `budget.frame_size`.

        Raises:
            InputError: too few frames, or a size that is not possible.
        """
        if budget is None or not frames:
            preferred = video_grid(frames, height, width, self.video_rules, self.facts)
            return choose_grid(self.grids, height, width, preferred)
        size = frame_size(frames, height, width, budget, self.limits.max_pixels, self.token_side, listed)
        return self.as_asked(height, width, size, budget, frames)

    def as_asked(self, height: int, width: int, size: Size, budget: PixelBudget, frames: int) -> Grid:
        """The grid (h, w) for a size in pixels that a message asks for, or the nearest one the artifact is bound to."""
        preferred = size[0] // self.facts.patch_size, size[1] // self.facts.patch_size
        pairs = -(-frames // self.facts.temporal_patch_size)
        tokens = pairs * preferred[0] * preferred[1] // self.facts.merge_unit
        if tokens > (limit := self.facts.max_position_embeddings):
            raise InputError(f"a size of {tokens} tokens, the context holds {limit}", "Ask for fewer pixels or frames")
        if not self.grids or preferred in self.grids:
            return preferred
        if budget.resized_height is not None:
            raise InputError(
                f"no encoder for pictures of {size[0]}x{size[1]} pixels", "Leave resized_height and resized_width out"
            )
        grids = grids_within(self.grids, *budget.limits(frames), self.facts)
        return choose_grid(grids, height, width, preferred)
