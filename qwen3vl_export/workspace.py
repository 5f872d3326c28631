"""Temporary directories that outlive no run for long: what a killed process left is removed by the next one.

A workspace holds a note that says whose it is, and its process holds a lock on it, which the kernel releases however
the process ends. Only a directory with the prefix, the note and no lock is removed; whatever else has such a name
stays. Where directories cannot be locked (Windows, some network disks), only the process that made one removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NOTE = "README.txt"
NOTE_TEXT = "A temporary directory of qwen3vl-export. Once no command is running, it can be deleted.\n"
DIGITS = 12  # hexadecimal, at the end of the name


@contextmanager
def workspace(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new directory in `parent` that only this user can read; it is removed at the end.

    Raises:
        OSError: it cannot be made.
    """
    directory = parent / f"{prefix}{uuid.uuid4().hex[:DIGITS]}"
    directory.mkdir(mode=0o700)
    descriptor: int | None = None
    try:
        with suppress(OSError, ImportError):  # no locks here
            descriptor = lock_directory(directory)
        (directory / NOTE).write_text(NOTE_TEXT, "utf-8")  # after the lock: what has a note and no lock is abandoned
        yield directory
    finally:
        try:
            discard(directory)
        finally:  # Ctrl-C may come while a large one is removed
            if descriptor is not None:
                os.close(descriptor)


def remove_abandoned(parent: Path, prefix: str, rescue: Callable[[Path], None] = lambda directory: None) -> None:
    """Remove the workspaces in `parent` that killed processes left under this prefix.

    Args:
        rescue: is called with each before it is removed, to move out what must stay.
    """
    name = re.compile(re.escape(prefix) + f"[0-9a-f]{{{DIGITS}}}")
    with suppress(OSError, ImportError):  # no such directory, or no locks here
        for directory in list(parent.iterdir()):
            if not name.fullmatch(directory.name) or directory.is_symlink() or not is_workspace(directory):
                continue
            descriptor = lock_directory(directory)
            if descriptor is not None:
                try:
                    rescue(directory)
                    discard(directory)
                finally:
                    os.close(descriptor)


def is_workspace(directory: Path) -> bool:
    """Whether a directory holds our note."""
    try:
        return (directory / NOTE).read_text("utf-8") == NOTE_TEXT
    except (OSError, UnicodeDecodeError):
        return False


def discard(directory: Path) -> None:
    """Remove a workspace as far as possible, its note last, so that one removed in part is still recognized."""
    with suppress(OSError):
        for child in list(directory.iterdir()):
            if child.name == NOTE:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink()
        if [child.name for child in directory.iterdir()] in ([], [NOTE]):
            (directory / NOTE).unlink(missing_ok=True)
            directory.rmdir()


def lock_directory(directory: Path) -> int | None:
    """A descriptor that locks a directory against other processes until it is closed; None if another one holds it.

    Raises:
        ImportError, OSError: there are no locks on this system or disk.
    """
    import fcntl  # not on Windows

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if directory.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
