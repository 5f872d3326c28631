"""What an interrupted build must share with the next one, so that the next may go on where it stopped.

Tracing is done again: it takes a minute and says where every byte belongs. Weights are not, if all that decides their
bytes is the same: recipe, prompts of calibration, files of the checkpoint, versions of the tools, and this package's
own source.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..artifact import GRAPH_DIR
from ..hash_cache import identity
from ..output import JOURNAL, clear
from ..recipe.model import Recipe
from .checkpoint import Checkpoint
from .skeletons import Log
from .stages import tool_versions
from .weights.journal import Journal, hash_of


def open_journal(directory: Path, recipe: Recipe, checkpoint: Checkpoint, prompts: dict[str, str], log: Log) -> Journal:
    """The journal of a build in `directory`, which then holds the weight files it speaks of and nothing else.

    Args:
        prompts: sha256 of what the decoder is calibrated with, by precision.
    """
    files = [(path.name, identity(path)) for path in checkpoint.files]
    made_of = {
        "recipe": hash_of(json.dumps(recipe.to_json_dict(), sort_keys=True)),
        "calibration": hash_of(sorted(prompts.items())),
        "checkpoint": hash_of((checkpoint.source, checkpoint.revision, files)),
        "tools": hash_of(sorted(tool_versions().items())),
        "exporter": _source_hash(),
    }
    graphs = directory / GRAPH_DIR
    journal = Journal.begin(directory.with_name(JOURNAL), made_of, graphs, log)
    clear(directory, lambda path: path.parent == graphs and path.name in journal.files)
    return journal


def _source_hash() -> str:
    """sha256 over this package's modules, so that a changed one is never taken for the one that wrote."""
    home = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
