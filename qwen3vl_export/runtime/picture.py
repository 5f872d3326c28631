"""One image or video as a model takes it in. Made by `prepare`; knows nothing about how."""

from __future__ import annotations

from dataclasses import dataclass

from .arrays import Float32


@dataclass(frozen=True)
class Picture:
    """One image or video as patches, and what takes the place of its placeholder.

    May stand in a message wherever an `Image` or `Video` may: then it is not read and resized again for each turn.
    """

    patches: Float32  # [t * h * w, patch_dim]
    grid: tuple[int, int, int]  # t, h, w
    placeholder: str
    text: str
    is_video: bool
