"""What a fleet needs of the parity harness. The command line passes it in; the fleet does not import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..recipe.model import Recipe


@dataclass(frozen=True)
class Harness:
    """Functions that can be sent to workers.

    Attributes:
        units: of the verification of a recipe's artifact on a matrix, in order: name -> ordinary cases that it costs.
        verify_part: carries out units of a matrix on an artifact, against a checkpoint (None is the one of the recipe)
            and its adapters.
        merge_parts: merges all parts of a matrix into the files of a verification, with `parity.json` and `SUMMARY`.
        forget: frees what is cached in memory between parts.
        version: digest of what a verdict depends on besides the versions of tools.
    """

    units: Callable[[Recipe, str], Mapping[str, float]]
    verify_part: Callable[[Path, str, Sequence[str], Path | None, Sequence[str]], bytes]
    merge_parts: Callable[[Path, str, Sequence[bytes]], Mapping[str, bytes]]
    forget: Callable[[], None]
    version: Callable[[], str]
