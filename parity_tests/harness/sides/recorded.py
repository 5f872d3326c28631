"""The checkpoint and the adapters that an artifact was built from, found again and compared with its manifest.

Knows manifests and checkpoints; nothing about PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint, open_repository
from qwen3vl_export.exporter.checkpoint.adapter import Adapter, open_adapter
from qwen3vl_export.hub import SCHEME
from qwen3vl_export.recipe import find_recorded

LOCAL = "local"  # in the place of a directory's revision


def find_checkpoint(artifact: Artifact, given: Path | None = None, adapters: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint an artifact was built from, its files and its adapters' compared with the manifest's record.

    Raises:
        CheckpointError: it cannot be found, or is another one.
    """
    record = artifact.manifest.checkpoint
    checkpoint = open_recorded(artifact, given, adapters)
    provenance, recorded = checkpoint.provenance(), record.get("adapters", [])
    if len(checkpoint.adapters) != len(recorded):
        raise CheckpointError(
            f"{checkpoint.root}: {len(checkpoint.adapters)} adapters, this artifact was built with {len(recorded)}",
            "Pass --adapter DIR once for each of them, in the same order",
        )
    pairs = [(checkpoint.root, provenance, record, "--checkpoint")]
    for adapter, actual, expected in zip(checkpoint.adapters, provenance.get("adapters", []), recorded, strict=True):
        pairs.append((adapter.root, actual, expected, "--adapter"))
    for root, actual, expected, option in pairs:
        if wrong := sorted({name for name, _ in expected["files"].items() ^ actual["files"].items()}):
            raise CheckpointError(
                f"{root}: {wrong[0]} is not the one this artifact was built from", f"Rebuild it, or pass {option} DIR"
            )
    return checkpoint


def open_recorded(artifact: Artifact, given: Path | None, adapters: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint and the adapters given, else the recorded ones: directories (`find_recorded`), or repositories at
    their commits."""
    record = artifact.manifest.checkpoint
    if given is not None:
        checkpoint = open_checkpoint(str(given.expanduser().resolve()))
    elif record["revision"] == LOCAL:
        checkpoint = open_checkpoint(str(recorded_directory(record["source"], "checkpoint")))
    else:
        checkpoint = open_repository(record["source"], record["revision"])
    if adapters:
        return checkpoint.adapted([open_adapter(name) for name in adapters])
    rest = record.get("adapters", [])[len(checkpoint.adapters) :]  # an adapter may be given as the checkpoint
    return checkpoint.adapted([open_recorded_adapter(adapter) for adapter in rest])


def open_recorded_adapter(record: Mapping[str, Any]) -> Adapter:
    """An adapter that a manifest records."""
    if record["revision"] == LOCAL:
        return open_adapter(str(recorded_directory(record["source"], "adapter")))
    return open_adapter(f"{SCHEME}{record['source']}@{record['revision']}")


def recorded_directory(source: str, kind: str) -> Path:
    """The directory that a manifest records.

    Args:
        kind: what it is called in the error, and in the option that names another place.
    """
    directory = find_recorded(source)
    if directory is None:
        raise CheckpointError(
            f"{source}: no such {kind} beside the recipes or in the current directory", f"Pass --{kind} DIR"
        )
    return directory
