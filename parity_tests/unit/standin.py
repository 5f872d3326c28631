"""A stand-in for an artifact: the tiny checkpoint's own files under a manifest without graphs.

Everything of the runtime that comes before a graph runs on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_export.artifact import Artifact, Encoder, Manifest
from qwen3vl_export.checkpoint import open_checkpoint
from qwen3vl_export.contract import Facts

TINY = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny"
ANY_GRID = (Encoder("vision_encoder", None),)


def tiny_facts() -> Facts:
    return open_checkpoint(str(TINY)).facts


def artifact_without_graphs(root: Path = TINY, **changes: Any) -> Artifact:
    """An artifact whose checkpoint files lie in `root`; `changes` replace values of the manifest."""
    values: dict[str, Any] = {
        "name": "standin",
        "recipe": {},
        "checkpoint": {},
        "facts": tiny_facts(),
        "encoders": ANY_GRID,
        "encoder_rule": "dynamic",
        "graphs": {},
        "tools": {},
        "min_onnxruntime": "1.0",
    }
    return Artifact(root, Manifest(**(values | changes)))
