"""Paths on the command line: `~` is the home directory wherever a shell leaves it, as in `--out=~/x`."""

from __future__ import annotations

from pathlib import Path


def expand(text: str) -> Path:
    """The path, with `~` and `~user` replaced; as it is if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
