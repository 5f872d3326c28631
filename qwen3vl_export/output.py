"""A directory that appears whole or not at all: built beside its final place, then renamed there; and second names.

Hours of writing are kept when they are interrupted: `resumable_directory` leaves what has a journal, and takes it up
again when asked to. Knows nothing about what is written, but that a journal makes it worth keeping; what may be
replaced is told by `replaceable.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildError, Qwen3VLExportError, SpaceError
from .replaceable import check_inputs, check_output

FULL = (errno.ENOSPC, errno.EDQUOT)
BUILDING = "artifact"  # in the directory of an unfinished build
JOURNAL = "journal.jsonl"  # beside it
NOTE = "README.txt"  # says whose directory it is, to people and to the next build
NOTE_TEXT = "An unfinished build of qwen3vl-export: build with --resume to continue it, with --force to begin anew.\n"


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
def whole_directory(path: Path, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it becomes `path`, on any failure it vanishes.

    Args:
        force: replace an artifact that is already there. It stays untouched until the new one is complete.
        inputs: what is read meanwhile, and so is never replaced.

    Raises:
        BuildError: `path` is taken.
        SpaceError: the disk is full.
    """
    inputs = tuple(inputs)
    target = check_output(path, force, inputs)
    building = _sibling(target, "building")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        try:
            yield building
            check_output(path, force, inputs)
            _replace(target, building)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        if error.errno in FULL:
            raise SpaceError(
                f"{target.parent}: disk full, nothing was written", "Free some space and run it again"
            ) from error
        raise


def unfinished(path: Path) -> Path:
    """Where an interrupted build of `path` is kept: a hidden sibling."""
    return path.resolve().with_name(f".{path.resolve().name}.unfinished")


@contextmanager
def resumable_directory(
    path: Path, force: bool = False, resume: bool = False, inputs: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield a directory beside `path`; on success it becomes `path`.

    What stops a build decides what is left of it in `unfinished(path)`. An error of ours leaves nothing, for it would
    come again, but what was there before; an interrupt, a full disk, any other accident or a `path` that was taken
    meanwhile leaves all that was written, if a journal tells what that is; kill -9 leaves everything, and the next
    build removes what has no journal.

    Args:
        force: replace an artifact that is already there, and whatever an interrupted build left.
        resume: yield what an interrupted build left, as it lies there.
        inputs: what is read meanwhile, and so is never replaced.

    Raises:
        BuildError: `path` is taken or just being built, an interrupted build is there and nobody said what to do with
            it, or somebody else's directory is where it would be.
        SpaceError: the disk is full.
    """
    inputs = tuple(inputs)
    target, left = check_output(path, force, inputs), unfinished(path)
    _check_unfinished(left, inputs)
    left.mkdir(parents=True, exist_ok=True)
    journal, building = left / JOURNAL, left / BUILDING
    with _alone(left):
        if journal.is_file() and not (resume or force):
            raise BuildError(
                f"{path}: an interrupted build left {_used(left):,} bytes in {left}",
                "Continue it with --resume, or begin anew with --force",
            )
        resumed = resume and journal.is_file()
        complete = False
        try:
            (left / NOTE).write_text(NOTE_TEXT, "utf-8")
            if not resumed:
                _discard_build(left)
            building.mkdir(exist_ok=True)
            yield building
            complete = True
            check_output(path, force, inputs)
            _replace(target, building)
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in FULL
            again = isinstance(error, Qwen3VLExportError) and not complete
            kept = journal.is_file() and building.is_dir() and (resumed or not again)
            what = f"{_used(left):,} bytes are kept in {left}" if kept else "nothing was written"
            if not kept:
                _discard(left)
            if full:
                next = f"Free some space and run it again{' with --resume' if kept else ''}"
                raise SpaceError(f"{target.parent}: disk full, {what}", next) from error
            if kept:
                error.add_note(f"{what}: continue with --resume")
            raise
        _discard(left)


def _sibling(path: Path, what: str) -> Path:
    """A hidden name beside `path` that nothing has."""
    return path.with_name(f".{path.name}.{what}-{uuid.uuid4().hex[:12]}")


def _check_unfinished(left: Path, inputs: Iterable[Path]) -> None:
    """Refuse a directory that is neither empty nor left by a build.

    Raises:
        BuildError: it is somebody else's, or is being read.
    """
    if not left.is_dir():
        if left.exists():
            raise BuildError(f"{left}: is a file, where the build is to be written", "Move it elsewhere")
        return
    check_inputs(left, inputs)
    if any(left.iterdir()) and not (left / NOTE).is_file():
        raise BuildError(
            f"{left}: not an unfinished build, but where one is to be written",
            "Move it elsewhere, or choose another --out",
        )


def _discard(left: Path) -> None:
    """Remove an unfinished build, its note last, so that one removed in part is still known; anything else stays."""
    _discard_build(left)
    with contextlib.suppress(OSError):
        if not (left / BUILDING).exists():
            (left / NOTE).unlink(missing_ok=True)
            left.rmdir()


def _discard_build(left: Path) -> None:
    (left / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(left / BUILDING, ignore_errors=True)


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


def _replace(target: Path, building: Path) -> None:
    """Put `building` where `target` is. What is there is moved aside, moved back if that fails, and deleted last.

    Raises:
        BuildError: all is done, but what was there cannot be deleted.
    """
    old = _sibling(target, "replaced")
    try:
        if target.exists():
            target.rename(old)
        building.rename(target)
    finally:  # Ctrl-C may come after either rename: what is where tells how far it went
        if building.exists() and old.exists():
            old.rename(target)
        elif old.exists():
            _delete(old, target)


def _delete(old: Path, target: Path) -> None:
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise BuildError(
            f"{target}: complete, but what was there before cannot be deleted ({error.strerror})", f"Delete {old}"
        ) from error
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{target} is complete; delete what was there before: {old}")
        raise
