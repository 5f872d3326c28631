"""A directory that appears whole or not at all: built beside its final place, then renamed there; and second names.

Hours of writing are kept when they are interrupted: `resumable_directory` leaves what has a journal, and takes it up
again when asked to. Knows nothing about what is written, but that a journal makes it worth keeping.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildError, Qwen3VLExportError, SpaceError

FULL = (errno.ENOSPC, errno.EDQUOT)
BUILDING = "artifact"  # in the directory of an unfinished build
JOURNAL = "journal.jsonl"  # beside it


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no second names; what had that name is gone."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(source, target)


@contextmanager
def whole_directory(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it becomes `path`, on any failure it vanishes.

    Args:
        force: replace a directory that is already there. It stays untouched until the new one is complete.

    Raises:
        BuildError: `path` is taken.
        SpaceError: the disk is full.
    """
    path = _free(path, force)
    building = path.with_name(f".{path.name}.building-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        yield building
        _replace(path, building)
    except OSError as error:
        if error.errno in FULL:
            raise SpaceError(
                f"{path.parent}: disk full, nothing was written", "Free some space and run it again"
            ) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def unfinished(path: Path) -> Path:
    """Where an interrupted build of `path` is kept: a hidden sibling."""
    return path.absolute().with_name(f".{path.name}.unfinished")


@contextmanager
def resumable_directory(path: Path, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield a directory beside `path`; on success it becomes `path`.

    What stops a build decides what is left of it in `unfinished(path)`. An error of ours leaves nothing, for it would
    come again, but what was there before; an interrupt, a full disk or any other accident leaves all that was written,
    if a journal tells what that is; kill -9 leaves everything, and the next build removes what has no journal.

    Args:
        force: replace a directory that is already there, and whatever an interrupted build left.
        resume: yield what an interrupted build left, as it lies there.

    Raises:
        BuildError: `path` is taken or just being built, an interrupted build is there and nobody said what to do with
            it.
        SpaceError: the disk is full.
    """
    path = _free(path, force)
    left = unfinished(path)
    left.mkdir(parents=True, exist_ok=True)
    journal, building = left / JOURNAL, left / BUILDING
    with _alone(left):
        if journal.is_file() and not (resume or force):
            raise BuildError(
                f"{path}: an interrupted build left {_used(left):,} bytes in {left}",
                "Continue it with --resume, or begin anew with --force",
            )
        resumed = resume and journal.is_file()
        if not resumed:
            clear(left)
        building.mkdir(exist_ok=True)
        try:
            yield building
            _replace(path, building)
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in FULL
            kept = journal.is_file() and (resumed or not isinstance(error, Qwen3VLExportError))
            what = f"{_used(left):,} bytes are kept in {left}" if kept else "nothing was written"
            if not kept:
                shutil.rmtree(left, ignore_errors=True)
            if full:
                next = f"Free some space and run it again{' with --resume' if kept else ''}"
                raise SpaceError(f"{path.parent}: disk full, {what}", next) from error
            if kept:
                error.add_note(f"{what}: continue with --resume")
            raise
        shutil.rmtree(left, ignore_errors=True)


def _free(path: Path, force: bool) -> Path:
    """`path`, absolute, if something may be built there."""
    path = path.absolute()
    if path.exists() and not force and (not path.is_dir() or any(path.iterdir())):
        raise BuildError(f"{path}: not empty", "Choose another directory, or replace it with --force")
    if path.exists() and not path.is_dir():
        raise BuildError(f"{path}: is a file", "Choose another directory")
    return path


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory against other processes; the kernel lets go of it when a process ends, however it does."""
    import fcntl  # not on Windows, where an artifact can be fetched but not built

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = directory.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            there = False
        if not there:
            raise BuildError(f"{directory}: another process is building there", "Wait for it")
        yield
    finally:
        os.close(descriptor)


def clear(directory: Path, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Remove everything in a directory but the files to keep, and directories that hold none."""
    for child in directory.iterdir():
        if child.is_dir():
            clear(child, keep)
            with contextlib.suppress(OSError):
                child.rmdir()
        elif not keep(child):
            child.unlink()


def _used(directory: Path) -> int:
    """Bytes that a directory takes on the disk."""
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


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
