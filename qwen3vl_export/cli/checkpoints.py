"""The checkpoint of a build on the command line: its revision, and how the next command finds it again."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import InputError
from ..hub import SCHEME
from ..recipe import Recipe, find_recorded
from .paths import expand


def checkpoint_at(recipe: Recipe, checkpoint: str | None, revision: str | None) -> str | None:
    """What to build from: the checkpoint given, and the revision, if any; None for the recipe's own.

    Raises:
        InputError: a directory has no revisions, or the checkpoint names another one.
    """
    if revision is None:
        return checkpoint
    source = checkpoint or recipe.checkpoint.source
    if local_directory(recipe, checkpoint) is not None:
        raise InputError(f"{source}: a directory has no revisions", "Leave --revision out")
    repository, _, named = source.removeprefix(SCHEME).partition("@")
    if named not in ("", revision):
        raise InputError(f"{source}: names another revision than --revision {revision}", "Leave one of them out")
    return f"{SCHEME}{repository}@{revision}"


def local_directory(recipe: Recipe, checkpoint: str | None) -> Path | None:
    """The directory that is built from; None for a repository."""
    if checkpoint is None:
        return recipe.checkpoint_dir
    directory = expand(checkpoint)
    return directory if directory.is_dir() else None


def verify_command(artifact: Path, recipe: Recipe, checkpoint: str | None) -> str:
    """The command that verifies what was built; it names the checkpoint if `verify` would not find it by itself."""
    words = ["qwen3vl-export", "verify", str(artifact)]
    directory = local_directory(recipe, checkpoint)
    if directory is not None:
        recorded = directory.resolve().name if checkpoint else str(recipe.to_json_dict()["checkpoint"]["source"])
        found = find_recorded(recorded)
        if found is None or found.resolve() != directory.resolve():
            words += ["--checkpoint", str(directory)]
    return shlex.join(words)
