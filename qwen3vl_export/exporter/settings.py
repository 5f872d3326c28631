"""The checkpoint's settings in the artifact: tokenizer, template, processors and licence.

Knows what a recipe asks of them; nothing about graphs or weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ..contract import TEXT
from ..packaging.package import PREPROCESSOR
from ..recipe.model import Recipe
from .checkpoint import Checkpoint
from .checkpoint.settings.generation import FILE as GENERATION
from .checkpoint.settings.generation import check_packaged

RETRIEVAL_TOKENS = (4, 1800)  # of a picture, at least and at most: `MIN_PIXELS`, `MAX_PIXELS` of Qwen3-VL-Embedding


def check_settings(checkpoint: Checkpoint, recipe: Recipe, log: Callable[[str], None]) -> None:
    """Read all settings before anything is traced, and log what was chosen or is ignored.

    Raises:
        CheckpointError: settings that an artifact of this recipe cannot carry.
    """
    for line in checkpoint.settings.warnings:
        log(f"warning: {line}")
    check_packaged(json.loads(checkpoint.settings.files[GENERATION]), recipe.packaging.runtimes, checkpoint.root)


def write_settings(checkpoint: Checkpoint, recipe: Recipe, directory: Path) -> None:
    """Write the checkpoint's settings and licence into an artifact.

    The size of a fixed encoder goes into the processor settings, so that any processor resizes to that many pixels; so
    does the pixel budget of models that embed or rerank, whose public code does not take that of their processor.
    """
    checkpoint.settings.write(directory)
    for file in checkpoint.licences:
        shutil.copyfile(file, directory / file.name)
    budget: tuple[int, int] | None = None
    if checkpoint.facts.head != TEXT:
        token = (checkpoint.facts.patch_size * checkpoint.facts.spatial_merge_size) ** 2
        budget = RETRIEVAL_TOKENS[0] * token, RETRIEVAL_TOKENS[1] * token
    if recipe.vision.grid == "fixed":
        height, width = recipe.vision.sizes[0]
        budget = height * width, height * width
    if budget is not None:
        path = directory / PREPROCESSOR
        settings = json.loads(path.read_text("utf-8"))
        settings["size"] = dict(zip(("shortest_edge", "longest_edge"), budget, strict=True))
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
