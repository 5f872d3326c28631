"""What results are called: by the hash of everything they depend on.

Equal recipe, checkpoint, tools and cases give an equal address; a changed byte in any of them gives another one, so
that nothing in a store is ever out of date. Knows how to name things; nothing about how they are made.
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
from ..hub import COMMIT, resolve_commit
from ..recipe.model import Recipe

DIGITS = 20  # of a sha256: 80 bits


@cache
def tools() -> Mapping[str, str]:
    """Versions of everything that shapes an artifact, and the digest of this package's own sources."""
    from ..exporter.stages import tool_versions

    return {**tool_versions(), "sources": source_digest(Path(__file__).parents[1])}


def revision_of(recipe: Recipe) -> str:
    """The commit of a recipe's checkpoint, resolved where the recipe names a branch; the digest of a directory's files.

    Raises:
        CheckpointError: no such directory, or the Hub does not know it.
    """
    directory = recipe.checkpoint_dir
    if directory is None:
        wanted = recipe.checkpoint
        return (
            wanted.revision
            if COMMIT.fullmatch(wanted.revision)
            else resolve_commit(wanted.source, wanted.revision, "Pin it when online: qwen3vl-export recipes pin")
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory", "See checkpoint.source of the recipe")
    hashes = HashCache()
    found = {path.name: hashes.sha256(path) for path in sorted(directory.iterdir()) if path.is_file()}
    hashes.save()
    return f"sha256:{digest_of(found)}"


def digest_of(inputs: Any) -> str:
    """sha256 of values that JSON can hold."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def address(folder: str, name: str, inputs: Any, suffix: str = "") -> str:
    """`artifacts/tiny-0f3a…`: a folder for the kind of result, the recipe's name for people, the hash of its inputs."""
    return f"{folder}/{name}-{digest_of(inputs)[:DIGITS]}{suffix}"
