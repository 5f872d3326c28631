"""Where a directory may be written: where there is none, an empty one or, with `--force`, an artifact of ours.

To replace is to delete, so an artifact is replaced only while every file in it is its own: named by its manifest, its
evidence or its provenance. Any other file is somebody's work. And nothing is ever replaced that holds the current
directory or what the command reads.

Knows the names of an artifact's files; nothing about what is in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from .artifact import MANIFEST, REPORTS, SIGNATURE, STATEMENT, evidence_name
from .errors import BuildError

TOOL = "qwen3vl-export"  # among the versions that every manifest of ours lists


def check_output(path: Path, force: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """Where a directory named `path` will be: the path with every symbolic link resolved.

    Args:
        force: an artifact that is there may be replaced.
        inputs: files and directories that the command reads; those that do not exist are passed over.

    Raises:
        BuildError: something is there that may not be replaced, or only with `force`.
    """
    target = path.resolve()
    if not target.exists():
        return target
    if not target.is_dir():
        raise BuildError(f"{path}: is a file", "Choose another directory")
    check_inputs(target, inputs)
    if not any(target.iterdir()):
        return target
    known = artifact_names(target)
    if not known:
        raise BuildError(f"{path}: not empty, and not an artifact", "Choose another directory")
    if strangers := sorted(set(file_names(target)) - known):
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise BuildError(
            f"{path}: holds {strangers[0]}{more}, which is not part of the artifact there",
            "Move it elsewhere, or choose another directory",
        )
    if not force:
        raise BuildError(f"{path}: not empty", "Choose another directory, or replace the artifact with --force")
    return target


def check_inputs(directory: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace a directory that is, or lies above, the current directory or something that is read.

    Args:
        directory: it exists.

    Raises:
        BuildError: it may not be replaced.
    """
    for path, what in ((Path.cwd(), "the current directory"), *((path, f"{path}, which is read") for path in inputs)):
        if path.exists() and any(directory.samefile(place) for place in with_parents(path)):
            verb = "is" if directory.samefile(path) else "holds"
            raise BuildError(f"{directory}: {verb} {what}", "Choose another directory")


def with_parents(path: Path) -> Iterator[Path]:
    """A path and all directories above it, both as it is written and with its links resolved."""
    for start in (path.absolute(), path.resolve()):
        yield start
        yield from start.parents


def artifact_names(root: Path) -> frozenset[str]:
    """Names of the files that belong to the artifact in `root`, whatever its format; none where there is no artifact.

    Evidence and provenance are named whether or not they are there; a published artifact's provenance lists the rest
    of what was published.
    """
    manifest, statement = read_json(root / MANIFEST), read_json(root / STATEMENT)
    try:
        manifest["tools"][TOOL]
        reports = {evidence_name(name, of) for name in REPORTS for of in ("", *manifest.get("precisions", {}))}
        published = {subject["name"] for subject in statement["subject"]} if statement else set()
        return frozenset({MANIFEST, STATEMENT, SIGNATURE, *reports, *published, *manifest["files"]})
    except (KeyError, TypeError, AttributeError):
        return frozenset()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no such file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None


def file_names(root: Path) -> Iterator[str]:
    """Everything below a directory that is not itself a directory, relative to it; links count and are not followed."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    for folder, directories, files in os.walk(root, onerror=refuse):
        for name in (*directories, *files):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_dir():
                yield path.relative_to(root).as_posix()
