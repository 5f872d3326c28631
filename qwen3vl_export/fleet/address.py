"""The names of results: the hash of everything they depend on.

Equal recipes, checkpoints, tools and cases give equal addresses; a changed byte in any of them gives another one, so
that nothing in a store is ever out of date. Knows names; nothing about how results are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..hash_cache import HashCache, source_digest
from ..hub import COMMIT, resolve_commit, split_revision
from ..recipe.blocks import is_directory
from ..recipe.model import Recipe

DIGITS = 20  # of a sha256: 80 bits


@cache
def tools() -> Mapping[str, str]:
    """Versions of everything an artifact depends on, and the digest of this package's sources."""
    from ..exporter.stages import tool_versions

    return {**tool_versions(), "sources": source_digest(Path(__file__).parents[1])}


def revision_of(recipe: Recipe) -> str:
    """The commit of a recipe's checkpoint, resolved where the recipe names a branch; the digest of a directory's files.
    With adapters, the digest of that and of theirs.

    Raises:
        CheckpointError: no such directory, or the Hub does not know it.
    """
    checkpoint = recipe.checkpoint
    if recipe.checkpoint_dir is None:
        revision = _commit_of(checkpoint.source, checkpoint.revision, "Pin it when online: qwen3vl-export recipes pin")
    else:
        revision = _digest_of_directory(recipe.checkpoint_dir, "checkpoint.source")
    if not checkpoint.adapters:
        return revision
    adapters = [
        _digest_of_directory(Path(adapter), "checkpoint.adapters")
        if is_directory(adapter)
        else _commit_of(*split_revision(adapter), "Write @COMMIT behind the adapter's name")
        for adapter in recipe.adapters
    ]
    return f"sha256:{digest_of([revision, *adapters])}"


def _commit_of(source: str, revision: str, offline: str) -> str:
    """The commit of a repository's revision; `offline` is the advice if the Hub cannot be reached."""
    return revision if COMMIT.fullmatch(revision) else resolve_commit(source, revision, offline)


def _digest_of_directory(directory: Path, key: str) -> str:
    """The digest of a directory's files; `key` is the recipe's that names it."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory", f"See {key} of the recipe")
    hashes = HashCache()
    digests = {path.name: hashes.sha256(path) for path in sorted(directory.iterdir()) if path.is_file()}
    hashes.save()
    return f"sha256:{digest_of(digests)}"


def digest_of(inputs: Any) -> str:
    """sha256 of values that JSON can hold."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def address(folder: str, name: str, inputs: Any, suffix: str = "") -> str:
    """`artifacts/tiny-0f3a…`: a folder for the kind of result, the recipe's name for people, the hash of its inputs."""
    return f"{folder}/{name}-{digest_of(inputs)[:DIGITS]}{suffix}"
