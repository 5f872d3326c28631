"""Where a directory may be written: a new path, an empty directory or, with `--force`, an artifact of ours.

Replacing deletes, so an artifact is replaced only if every file in it belongs to it: if its manifest, evidence or
provenance names the file. Any other file is somebody's work. A directory that contains the current directory, or
something the command reads, is never replaced.

Knows the names of an artifact's files; nothing about their content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .artifact import REPORTS, SIGNATURE, STATEMENT, evidence_name
from .errors import BuildError, SpaceError, errno_of, first_line
from .manifest import MANIFEST, TOOL
from .output import FULL, remove_abandoned, replace_directory, settle_replaced, workspace

BUILDING = "artifact"  # in the temporary directory


def check_output(path: Path, force: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """The path with its symbolic links resolved, if a directory may be written there.

    Args:
        force: whether an existing artifact may be replaced.
        inputs: files and directories that the command reads; those that do not exist are ignored.

    Raises:
        BuildError: `path` exists and may not be replaced, or only with `force`.
    """
    try:
        target = path.resolve()
        existing = next(directory for directory in (target, *target.parents) if directory.exists())
    except (OSError, RuntimeError) as error:  # a name that is too long; links in a circle (RuntimeError before 3.13)
        raise BuildError(f"{path}: no directory can be made there ({first_line(error)})", "Choose another") from None
    if target != existing:
        if not existing.is_dir():
            raise BuildError(f"{path}: {existing} is a file", "Choose another directory")
        return target
    if not target.is_dir():
        raise BuildError(f"{path}: is a file", "Choose another directory")
    check_inputs(target, inputs)
    if not any(target.iterdir()):
        return target
    expected = artifact_names(target)
    if not expected:
        raise BuildError(f"{path}: not empty, and not an artifact", "Choose another directory")
    if strangers := sorted(set(file_names(target)) - expected):
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise BuildError(
            f"{path}: holds {strangers[0]}{more}, which is not part of the artifact there",
            "Move it elsewhere, or choose another directory",
        )
    if not force:
        raise BuildError(f"{path}: not empty", "Choose another directory, or replace the artifact with --force")
    return target


@contextmanager
def whole_directory(path: Path, force: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a temporary directory; on success it becomes `path`, on any failure it is removed.

    What earlier runs left beside `path` when they were killed is removed first, and what they were replacing is put
    back.

    Args:
        force: replace an artifact that is already there, once the new one is complete.
        inputs: what is read meanwhile, which is never replaced.

    Raises:
        BuildError: `path` is taken.
        SpaceError: the disk is full.
    """
    inputs = tuple(inputs)
    target = check_output(path, force, inputs)
    prefix = f".{target.name}.building-"
    remove_abandoned(target.parent, prefix, partial(settle_replaced, target))
    check_output(path, force, inputs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with workspace(target.parent, prefix) as folder:
            building = folder / BUILDING
            building.mkdir()
            yield building
            check_output(path, force, inputs)
            replace_directory(target, building)
    except OSError as error:
        if errno_of(error) in FULL:
            raise SpaceError(
                f"{target.parent}: disk full, nothing was written", "Free some space and run it again"
            ) from error
        raise


def check_inputs(directory: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace a directory that is, or contains, the current directory or an input.

    Args:
        directory: must exist.

    Raises:
        BuildError: it may not be replaced.
    """
    protected = [(Path.cwd(), "the current directory"), *((path, f"{path}, which is read") for path in inputs)]
    for path, description in protected:
        if path.exists() and any(directory.samefile(parent) for parent in with_parents(path)):
            verb = "is" if directory.samefile(path) else "holds"
            raise BuildError(f"{directory}: {verb} {description}", "Choose another directory")


def with_parents(path: Path) -> Iterator[Path]:
    """A path and its parents, first as given, then with links resolved."""
    for start in (path.absolute(), path.resolve()):
        yield start
        yield from start.parents


def artifact_names(root: Path) -> frozenset[str]:
    """Names of the files that belong to the artifact in `root`, of any format; empty if it holds no artifact.

    Evidence and provenance are named even if they do not exist; a published artifact's provenance lists the other
    published files.
    """
    manifest, statement = read_json(root / MANIFEST), read_json(root / STATEMENT)
    try:
        manifest["tools"][TOOL]
        precisions = ("", *manifest.get("precisions", {}))
        reports = {evidence_name(name, precision) for name in REPORTS for precision in precisions}
        published = {subject["name"] for subject in statement["subject"]} if statement else set()
        return frozenset({MANIFEST, STATEMENT, SIGNATURE, *reports, *published, *manifest["files"]})
    except (KeyError, TypeError, AttributeError):
        return frozenset()


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it does not exist or is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None


def file_names(root: Path) -> Iterator[str]:
    """Every path below a directory that is not a directory, relative to it; links are listed and not followed."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    for folder, directories, files in os.walk(root, onerror=refuse):
        for name in (*directories, *files):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_dir():
                yield path.relative_to(root).as_posix()
