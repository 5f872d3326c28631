"""One image or video as the model reads it. Made by `prepare`; knows nothing about how."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import Float32


@dataclass(frozen=True)
class Picture:
    """One image or video as patches, and the text that replaces its placeholder in the prompt.

    Can be used in a message in place of an `Image` or `Video`: then it is not read and resized again for each turn.
    """

    patches: Float32  # [t * h * w, patch_dim]
    grid: tuple[int, int, int]  # (t, h, w) in patches
    placeholder: str  # the token that the chat template writes for it
    text: str  # what replaces that token
    is_video: bool

    @property
    def tokens(self) -> int:
        """How many tokens of the prompt are its pixels; a video has a few more, for its timestamps."""
        return self.text.count(self.placeholder)
