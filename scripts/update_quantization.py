"""Write the table of docs/recipes.md: what 4 bits cost the tiny model, by algorithm, block size and zero points.

    python scripts/update_quantization.py

Builds an artifact for each row in a temporary directory and verifies it against PyTorch in float32: prompts and answers
of the standard matrix, and the exam.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from update_readme import filled  # noqa: E402

from parity_tests.harness import open_bench, run  # noqa: E402
from parity_tests.plan import EXAM_STAGES  # noqa: E402
from parity_tests.report import PRECISION_STAGES, Report  # noqa: E402
from qwen3vl_export.contract import DECODER  # noqa: E402
from qwen3vl_export.pipeline import build  # noqa: E402
from qwen3vl_export.recipe import load_recipe  # noqa: E402

DOCUMENT = ROOT / "docs" / "recipes.md"
MATRIX = "standard"
BLOCKS, ZEROS, ALGORITHMS = (32, 128), (True, False), ("rtn", "search", "gptq")
HEAD = (
    "| blocks of | zero points | algorithm | weight error | mean KL | worst KL | same best token | exam |",
    "|--:|---|---|--:|--:|--:|--:|--:|",
)
RECIPE = """\
extends: {tiny}
calibration: {{source: {prompts}}}
quantization:
  decoder_model_merged: {{method: int4, block_size: {size}, symmetric: {symmetric}, algorithm: {algorithm}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8"), "quantization", rows(Path(work))), "utf-8")


def rows(work: Path) -> Iterator[str]:
    yield from HEAD
    for size, symmetric, algorithm in product(BLOCKS, ZEROS, ALGORITHMS):
        file = work / f"int4-{size}-{'symmetric' if symmetric else 'own'}-{algorithm}.yaml"
        recipes = ROOT / "recipes"
        values: dict[str, Any] = {"tiny": recipes / "tiny.yaml", "prompts": recipes / "calibration"}
        values |= {"size": size, "symmetric": str(symmetric).lower(), "algorithm": algorithm}
        file.write_text(RECIPE.format(**values), "utf-8")
        row = f"| {size} | {'the middle' if symmetric else 'own'} | {algorithm} | {measured(file, work / file.stem)} |"
        print(row, flush=True)
        yield row


def measured(recipe: Path, out: Path) -> str:
    """The last columns of a row."""
    artifact = build(load_recipe(recipe), out=out, log=lambda line: None)
    bench = open_bench(artifact, MATRIX)
    wanted = (*PRECISION_STAGES, *EXAM_STAGES)
    report: Report = run(bench, MATRIX, only=lambda check: check.stage in wanted)
    cost = report.precision()
    assert cost is not None
    error = bench.artifact.manifest.graphs[DECODER]["weight_errors"]["mean"]
    return (
        f"{error:.1%} | {cost['mean_kl']:.4f} | {cost['worst_kl']:.2f} | {cost['top1_agreement']:.1%} | "
        f"{cost['accuracy']:.1%}"
    )


if __name__ == "__main__":
    main()
