"""What an interrupted build must have in common with the next one for the next to continue it.

Graphs are traced again: it takes a minute and says where every byte belongs. Weights are not written again if
everything that determines their bytes is the same: recipe, calibration prompts, checkpoint files, tool versions, and
the source of this package.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..hash_cache import identity, source_digest
from ..output import clear
from ..promise import GRAPH_DIR
from ..recipe.model import Recipe
from .checkpoint import Checkpoint
from .skeletons import Log
from .stages import tool_versions
from .unfinished import JOURNAL
from .weights.journal import Journal, hash_of


def open_journal(directory: Path, recipe: Recipe, checkpoint: Checkpoint, prompts: dict[str, str], log: Log) -> Journal:
    """Open the journal of a build in `directory`, and remove everything there but the weight files it lists.

    Args:
        prompts: sha256 of the prompts that graphs are calibrated with, by graph and precision.
    """
    files = [(path.name, identity(path)) for path in checkpoint.files]
    made_of = {
        "recipe": hash_of(json.dumps(recipe.to_json_dict(), sort_keys=True)),
        "calibration": hash_of(sorted(prompts.items())),
        "checkpoint": hash_of((checkpoint.source, checkpoint.revision, files)),
        "tools": hash_of(sorted(tool_versions().items())),
        "exporter": source_digest(Path(__file__).parents[1]),
    }
    graphs = directory / GRAPH_DIR
    journal = Journal.open(directory.with_name(JOURNAL), made_of, graphs, log)
    clear(directory, lambda path: path.parent == graphs and path.name in journal.files)
    return journal
