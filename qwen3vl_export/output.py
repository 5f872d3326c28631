"""Files and directories that appear whole or not at all: written beside their final place and renamed; and hard links.

Knows names and renames; nothing about what is written, and nothing about what may be replaced (`replaceable.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildError

LONGEST_NAME = 255  # bytes, on every file system in use
FULL = (errno.ENOSPC, errno.EDQUOT)
REPLACED = "replaced"  # beside the directory that replaces it


@contextmanager
def whole_file(path: Path, hidden: bool = True) -> Iterator[Path]:
    """Yield the name of a file to write beside `path`, with its suffix; on success it replaces `path`.

    Args:
        hidden: whether that name begins with a dot.
    """
    partial = path.with_name(f"{'.' if hidden else ''}{path.stem}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_file_name(name: str) -> bool:
    """Whether a file can have this name or path: in UTF-8, without NUL, no part over 255 bytes."""
    try:
        return "\0" not in name and all(len(part.encode()) <= LONGEST_NAME for part in name.split("/"))
    except UnicodeEncodeError:
        return False


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no hard links; replaces `target`."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in FULL:
            raise
        shutil.copyfile(source, target)


def replace_directory(target: Path, building: Path) -> None:
    """Rename `building` to `target`. A directory that is there is moved beside `building`, moved back on failure, and
    deleted last.

    Raises:
        BuildError: `target` is complete, but the directory it replaced cannot be deleted.
    """
    old = building.with_name(REPLACED)
    try:
        if target.exists():
            target.rename(old)
        building.rename(target)
    finally:  # Ctrl-C may come after either rename: which of them exist shows how far it got
        if building.exists() and old.exists():
            old.rename(target)
        elif old.exists():
            _delete(old, target)


def settle_replaced(target: Path, folder: Path) -> None:
    """Finish what a process that was killed in `replace_directory` left beside its `building`, in `folder`: the old
    directory is moved back if there is no new one, and deleted otherwise."""
    old = folder / REPLACED
    if not old.is_dir():
        return
    if target.is_dir() and any(target.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def _delete(old: Path, target: Path) -> None:
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise BuildError(
            f"{target}: complete, but the directory it replaced cannot be deleted ({error.strerror})", f"Delete {old}"
        ) from error
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{target} is complete; delete the directory it replaced: {old}")
        raise


def clear(directory: Path, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Remove everything in a directory except the files to keep and the directories that hold them."""
    for child in directory.iterdir():
        if child.is_dir():
            clear(child, keep)
            with contextlib.suppress(OSError):
                child.rmdir()
        elif not keep(child):
            child.unlink()
