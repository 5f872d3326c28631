"""A small artifact with evidence of its own, for tests of what is done with proven artifacts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from qwen3vl_export.artifact import JUNIT, MANIFEST, PARITY, open_artifact

from .harness import HTML, open_bench, run, write_evidence

CASE = "minimum-64x64"


def prove(artifact: Path, root: Path) -> Path:
    """Copy an artifact to `root` and prove the copy with one case; its recipe asks for the quick matrix only."""
    shutil.copytree(artifact, root)
    for name in (PARITY, JUNIT, HTML):
        (root / name).unlink(missing_ok=True)
    manifest = open_artifact(root, check=False).manifest
    recipe = {**manifest.recipe, "parity": {**manifest.recipe["parity"], "matrix": "quick"}}
    (root / MANIFEST).write_text(replace(manifest, recipe=recipe).to_json(), "utf-8")
    bench = open_bench(root)
    report = run(bench, only=lambda check: check.name == CASE)
    write_evidence(bench.artifact, report, bench.matrix)
    return root
