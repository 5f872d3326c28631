"""What a fleet asks of the parity harness. The command line hands it in: nothing in here knows where it lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..recipe.model import Recipe


@dataclass(frozen=True)
class Harness:
    """Functions that can be sent to workers.

    Attributes:
        units: what the artifact of a recipe is verified in, in order, for a matrix: name -> how many cases it is worth.
        verify_part: carries out units of a matrix on an artifact, beside a checkpoint (None: where the recipe says).
        merge_parts: all parts of a matrix as the files of a whole verification; `parity.json` and `SUMMARY` among them.
        forget: gives back what is kept in memory between parts.
        version: digest of what a verdict depends on, beyond the versions of tools.
    """

    units: Callable[[Recipe, str], Mapping[str, float]]
    verify_part: Callable[[Path, str, Sequence[str], Path | None], bytes]
    merge_parts: Callable[[Path, str, Sequence[bytes]], Mapping[str, bytes]]
    forget: Callable[[], None]
    version: Callable[[], str]
