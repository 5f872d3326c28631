"""The checkpoint of a build on the command line: its revision, and how the next command finds it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..hub import ADAPTER_CONFIG, SCHEME
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


def verify_command(artifact: Path, recipe: Recipe, checkpoint: str | None, adapters: Sequence[str] = ()) -> str:
    """The command that verifies what was built; it names the checkpoint and the adapters if `verify` would not find
    them by itself."""
    words = ["qwen3vl-export", "verify", str(artifact)]
    recorded = recipe.to_json_dict()["checkpoint"]
    directory = local_directory(recipe, checkpoint)
    if directory is not None:
        is_adapter = (directory / ADAPTER_CONFIG).is_file()  # the manifest records its base as the checkpoint
        if is_adapter or not _is_found(directory, "" if checkpoint else recorded["source"]):
            words += ["--checkpoint", str(directory)]
    named = adapters or recipe.adapters
    names = [""] * len(adapters) if adapters else recorded["adapters"]
    directories = [(expand(adapter), name) for adapter, name in zip(named, names, strict=True)]
    if not all(_is_found(path, name) for path, name in directories if path.is_dir()):
        words += [word for adapter in named for word in ("--adapter", adapter)]
    return shlex.join(words)


def _is_found(directory: Path, name: str) -> bool:
    """Whether `verify` finds a directory under the name that the manifest records; default its last name."""
    found = find_recorded(name or directory.resolve().name)
    return found is not None and found.resolve() == directory.resolve()
