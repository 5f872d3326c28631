"""A small artifact with evidence of its own, for tests of what is done with proven artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qwen3vl_export.artifact import JUNIT, MANIFEST, PARITY, open_artifact
from qwen3vl_export.promise import grid_case

from .harness import HTML, open_bench, run, write_evidence
from .plan import Check

CASE = "minimum-64x64"


def prove(artifact: Path, root: Path) -> Path:
    """Copy an artifact to `root` and prove every precision of the copy with one case, and with those of grids that it
    is bound to; it asks for the quick matrix and for no exam."""
    shutil.copytree(artifact, root)
    for one in open_artifact(root, check=False).every_precision:
        for name in (PARITY, JUNIT, HTML):
            one.evidence_path(name).unlink(missing_ok=True)
    manifest = open_artifact(root, check=False).manifest
    precisions = {name: {**one, "recipe": quick(one["recipe"])} for name, one in manifest.precisions.items()}
    changed = replace(manifest, recipe=quick(manifest.recipe), precisions=precisions)
    (root / MANIFEST).write_text(changed.to_json(), "utf-8")
    for precision in ("", *precisions):
        bench = open_bench(root, precision=precision)
        names = {CASE, *map(grid_case, bench.fixed_grids)}
        report = run(bench, only=partial(is_wanted, names))
        write_evidence(bench.artifact, report, bench.matrix)
    return root


def is_wanted(names: set[str], check: Check) -> bool:
    """Whether a check is of one of these cases, or of none."""
    return check.case is None or check.name in names


def quick(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, asking for the quick matrix and for no exam."""
    return {**recipe, "parity": {**recipe["parity"], "matrix": "quick", "held_out": False}}
