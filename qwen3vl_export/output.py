"""Files and directories that appear whole or not at all: written beside their final place and renamed; and hard links.

A directory is written in a workspace, which outlives no run for long: what a killed process left is removed by the next
one. A workspace holds a note that says whose it is, and its process holds a lock on it, which the kernel releases
however the process ends. Only a directory with the prefix, the note and no lock is removed; whatever else has such a
name stays. Where directories cannot be locked (Windows, some network disks), only the process that made one removes it.

Knows names, renames and locks; nothing about what is written, and nothing about what may be replaced
(`replaceable.py`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BuildError

LONGEST_NAME = 255  # bytes, on every file system in use
LONGEST_PATH = 4095  # bytes (Linux; other systems allow no more)
FULL = (errno.ENOSPC, errno.EDQUOT)
NOTE = "README.txt"
NOTE_TEXT = "A temporary directory of qwen3vl-export. Once no command is running, it can be deleted.\n"
DIGITS = 12  # hexadecimal, at the end of the name
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
    """Whether a file can have this name or path: without NUL, not over 4095 bytes and no part over 255.

    Bytes that are no text may be in it, as `os.fsdecode` gives them; halves of surrogate pairs may not.
    """
    try:
        encoded = name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    parts = encoded.split(b"/")
    return len(encoded) <= LONGEST_PATH and b"\0" not in encoded and all(len(part) <= LONGEST_NAME for part in parts)


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
            with suppress(OSError):
                child.rmdir()
        elif not keep(child):
            child.unlink()


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
