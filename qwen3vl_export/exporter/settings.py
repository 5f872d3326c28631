"""The checkpoint's settings in the artifact: tokenizer, template, processors and licence, copied.

Knows file names; nothing about graphs or weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..artifact import NEEDED_FILES
from ..errors import CheckpointError
from ..packaging.package import PREPROCESSOR
from ..recipe.model import Recipe
from .checkpoint import Checkpoint


def copy_settings(checkpoint: Checkpoint, recipe: Recipe, directory: Path) -> None:
    """Copy the checkpoint's settings and licence into an artifact.

    The size of a fixed encoder goes into the processor settings, so that any processor resizes to that many pixels.

    Raises:
        CheckpointError: a file that a runtime needs is missing.
    """
    for name in NEEDED_FILES:
        if not (checkpoint.root / name).is_file():
            raise CheckpointError(f"{checkpoint.root}: {name} is missing", "Download the checkpoint again")
    for file in [*checkpoint.settings, *checkpoint.licences]:
        shutil.copyfile(file, directory / file.name)
    if recipe.vision.grid == "fixed":
        height, width = recipe.vision.sizes[0]
        path = directory / PREPROCESSOR
        settings = json.loads(path.read_text("utf-8"))
        settings["size"] = {"shortest_edge": height * width, "longest_edge": height * width}
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
