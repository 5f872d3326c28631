"""What the source of a checkpoint or an adapter names: a directory, or a repository of the Hub. Opens neither."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ...errors import CheckpointError
from ...hub import REPOSITORY, SCHEME, split_revision


def locate(source: str, kind: str, revision: str = "main") -> Path | tuple[str, str]:
    """The directory, resolved, or the name and the revision of the repository.

    Args:
        source: path of a directory, `org/name[@revision]`, or `hf://org/name[@revision]`, which is never a directory.
        kind: "checkpoint" or "adapter", for errors.
        revision: of a repository whose source names none.

    Raises:
        CheckpointError: no such directory, and not the name of a repository.
    """
    repository, named_revision = split_revision(source, revision)
    if source.startswith(SCHEME):
        return repository, named_revision
    local = Path(os.path.expanduser(source))
    if os.path.isdir(local):  # unlike `Path.is_dir`, False for a name that is too long
        return local.resolve()
    missing = f"{local}: no such {kind} directory"
    if not REPOSITORY.fullmatch(repository):
        raise CheckpointError(missing, _similar_directory(local) or "Give a directory, or a repository as org/name")
    if os.path.lexists(local.parent):  # a mistyped directory, rather than an owner on the Hub
        raise CheckpointError(missing, f"{_similar_directory(local)} A repository is {SCHEME}{source}".lstrip())
    return repository, named_revision


def _similar_directory(path: Path) -> str:
    """`Did you mean models/tiny?`, or nothing."""
    parent = path.parent
    names = [child.name for child in parent.iterdir() if child.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {parent / close[0]}?" if close else ""
