"""A directory that appears whole or not at all: built beside its final place, then renamed there.

Knows nothing about what is written into it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildError


@contextmanager
def whole_directory(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it becomes `path`, on any failure it vanishes.

    Args:
        force: replace a directory that is already there. It stays untouched until the new one is complete.

    Raises:
        BuildError: `path` is taken, or the disk is full.
    """
    path = path.absolute()
    if path.exists() and not force and (not path.is_dir() or any(path.iterdir())):
        raise BuildError(f"{path}: not empty", "Choose another directory, or replace it with --force")
    if path.exists() and not path.is_dir():
        raise BuildError(f"{path}: is a file", "Choose another directory")
    building = path.with_name(f".{path.name}.building-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        yield building
        _replace(path, building)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(
                f"{path.parent}: disk full, nothing was written", "Free some space and run it again"
            ) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _replace(path: Path, building: Path) -> None:
    """Put `building` where `path` is; the old directory is moved aside first and deleted last."""
    old = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    if path.exists():
        path.rename(old)
    try:
        building.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
