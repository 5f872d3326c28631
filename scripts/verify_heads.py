"""Build the tiny embedding model and reranker for both targets in three precisions, and verify each: 12 artifacts.

    python scripts/verify_heads.py --out DIR [--matrix quick] [NAME ...]

Prints a line of docs/retrieval.md's table for each and exits with 1 if any check fails. NAMEs are of artifacts, as
`tiny-embedding-ort-float32`; by default all. An artifact that DIR holds is not built again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from parity_tests.harness.cases.gallery import SEARCH, gallery  # noqa: E402
from parity_tests.harness.options import Options  # noqa: E402
from parity_tests.harness.verify import verify  # noqa: E402
from qwen3vl_export.artifact import PARITY  # noqa: E402
from qwen3vl_export.contract import EMBEDDING, RERANKER  # noqa: E402
from qwen3vl_export.evidence import Evidence  # noqa: E402
from qwen3vl_export.exporter.pipeline import build  # noqa: E402
from qwen3vl_export.json_form import from_json  # noqa: E402
from qwen3vl_export.recipe import load_recipe  # noqa: E402
from qwen3vl_export.runtime import Image, Qwen3VL  # noqa: E402

TARGETS = ("ort", "portable")
INT8 = (
    "quantization: {vision_encoder: {method: int8}, embeddings: {method: int8}, decoder_model_merged: {method: int8}}"
)
SETTINGS = {  # of a recipe, by precision and target; only onnxruntime's operators look up quantized rows
    "float32": dict.fromkeys(TARGETS, "dtype: float32"),
    "float16": dict.fromkeys(TARGETS, "dtype: float16"),
    "int8": {"ort": INT8, "portable": INT8.replace("embeddings: {method: int8}, ", "")},
}
END_TO_END = {EMBEDDING: ("embedding", "max_abs"), RERANKER: ("score", "max_abs")}


def build_once(name: str, directory: Path) -> Path:
    _, head, target, precision = name.split("-")
    recipe = directory / f"{name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"extends: {ROOT}/recipes/tiny-{head}.yaml", f"target: {target}", SETTINGS[precision][target])
    recipe.write_text("\n".join(lines) + "\n", "utf-8")
    out = directory / name
    return out if out.is_dir() else build(load_recipe(recipe), out=out, log=lambda line: None)


def share_right(artifact: Path, head: str) -> float:
    """How many captions find their picture in the gallery, or how many pairs of a caption with its own picture and with
    the next one are judged right."""
    model, pictures = Qwen3VL.load(artifact), gallery()
    images, captions = [Image(picture.image) for picture in pictures], [picture.caption for picture in pictures]
    if head == EMBEDDING:
        cosines = model.embed(captions, instruction=SEARCH) @ model.embed(images).T
        return float((cosines.argmax(axis=1) == np.arange(len(pictures))).mean())
    neighbours = zip(captions, images, [*images[1:], images[0]], strict=True)
    scores = np.stack([model.rerank(caption, [own, next_one]) for caption, own, next_one in neighbours])
    return float(((scores > 0.5) == [True, False]).mean())


def row(name: str, directory: Path, matrix: str | None) -> tuple[str, bool]:
    """A line of the table, and whether every check passed."""
    _, head, target, precision = name.split("-")
    artifact = build_once(name, directory)
    verify(artifact, Options(matrix=matrix))
    evidence = from_json(Evidence, (artifact / PARITY).read_bytes())
    stage, measure = END_TO_END[head]
    worst = max(float(check.measures[measure] or 0) for check in evidence.checks if check.stage == stage)
    passed = f"{len(evidence.checks) - len(evidence.failures)} of {evidence.planned}"
    line = f"| {head} | `{target}` | {precision} | {passed} | {worst:.2g} | {share_right(artifact, head):.1%} |"
    return line, evidence.passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"tiny-{head}-{target}-{precision}" for head in END_TO_END for target in TARGETS for precision in SETTINGS]
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifacts")
    parser.add_argument("--matrix", help="quick, release, standard or full; default the recipe's")
    arguments = parser.parse_args()
    rows = [row(name, arguments.out, arguments.matrix) for name in arguments.names or names]
    print("\n".join(line for line, _ in rows))
    return 0 if all(passed for _, passed in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
