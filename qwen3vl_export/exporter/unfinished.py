"""An interrupted build: what it leaves, and how the next build resumes it or begins anew.

Hours of writing survive an interrupt: `resumable_directory` leaves what has a journal, and resumes it when asked to.
Knows nothing about what is written, except that a journal makes it worth keeping; `replaceable.py` decides what may be
replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BuildError, Qwen3VLExportError, SpaceError, errno_of
from ..output import FULL, REPLACED, lock_directory, replace_directory, settle_replaced
from ..replaceable import BUILDING, check_inputs, check_output

JOURNAL = "journal.jsonl"  # in the directory of an unfinished build
NOTE = "README.txt"  # says whose directory it is, to people and to the next build
NOTE_TEXT = "An unfinished build of qwen3vl-export: build with --resume to continue it, with --force to begin anew.\n"


def unfinished(path: Path) -> Path:
    """Where an interrupted build of `path` is kept: a hidden sibling."""
    return path.resolve().with_name(f".{path.resolve().name}.unfinished")


@contextmanager
def resumable_directory(
    path: Path, force: bool = False, resume: bool = False, inputs: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield a directory beside `path`; on success it becomes `path`.

    How a build ends decides what it leaves in `unfinished(path)`. A `Qwen3VLExportError`, which would be raised again,
    leaves only what an earlier build left. An interrupt, a full disk, any other accident or a `path` that was taken
    meanwhile leaves everything written, if there is a journal of it. kill -9 leaves everything, and the next build
    removes what has no journal.

    Args:
        force: replace an artifact that is already there, and discard what an interrupted build left.
        resume: yield what an interrupted build left, unchanged.
        inputs: what the build reads, which is never replaced.

    Raises:
        BuildError: `path` is taken, another process is building it, an interrupted build exists and neither `resume`
            nor `force` is set, or a directory that no build left has the name of the unfinished one.
        SpaceError: the disk is full.
    """
    inputs = tuple(inputs)
    target, left = check_output(path, force, inputs), unfinished(path)
    _check_unfinished(left, inputs)
    left.mkdir(parents=True, exist_ok=True)
    journal, building = left / JOURNAL, left / BUILDING
    with _locked(left):
        if journal.is_file() and not (resume or force):
            raise BuildError(
                f"{path}: an interrupted build left {_bytes_on_disk(left):,} bytes in {left}",
                "Continue it with --resume, or begin anew with --force",
            )
        settle_replaced(target, left)
        check_output(path, force, inputs)
        resumed = resume and journal.is_file() and building.is_dir()
        complete = False
        try:
            (left / NOTE).write_text(NOTE_TEXT, "utf-8")
            if not resumed:
                _discard_build(left)
            building.mkdir(exist_ok=True)
            yield building
            complete = True
            check_output(path, force, inputs)
            replace_directory(target, building)
        except BaseException as error:
            disk_full = isinstance(error, OSError) and errno_of(error) in FULL
            would_recur = isinstance(error, Qwen3VLExportError) and not complete
            resumable = journal.is_file() and building.is_dir() and (resumed or not would_recur)
            result = f"{_bytes_on_disk(left):,} bytes are kept in {left}" if resumable else "nothing was written"
            if not resumable:
                _discard(left)
            if disk_full:
                advice = f"Free some space and run it again{' with --resume' if resumable else ''}"
                raise SpaceError(f"{target.parent}: disk full, {result}", advice) from error
            if resumable:
                error.add_note(f"{result}: continue with --resume")
            raise
        _discard(left)


def _check_unfinished(left: Path, inputs: Iterable[Path]) -> None:
    """Refuse a directory that is neither empty nor left by a build.

    Raises:
        BuildError: no build left it, or the build reads it.
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
    """Remove an unfinished build, its note last, so that one removed in part is still recognized; keeps other files."""
    _discard_build(left)
    with contextlib.suppress(OSError):
        if not (left / BUILDING).exists() and not (left / REPLACED).exists():
            (left / NOTE).unlink(missing_ok=True)
            left.rmdir()


def _discard_build(left: Path) -> None:
    (left / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(left / BUILDING, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes; the kernel releases the lock when the process ends, however it ends."""
    descriptor = lock_directory(directory)
    if descriptor is None:
        raise BuildError(f"{directory}: another process is building there", "Wait for it")
    try:
        yield
    finally:
        os.close(descriptor)


def _bytes_on_disk(directory: Path) -> int:
    """Bytes that a directory occupies on the disk."""
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())
