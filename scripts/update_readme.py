"""Writes what README.md says was measured from an artifact: the line of proof, the tables and the demo's output.

The tables come from its parity.json, the session from running the demonstration on it.

    python scripts/update_readme.py [artifacts/tiny] [--check]

`--check` changes nothing and fails if the README says something else than the artifact does. Evidence that
did not pass, or that belongs to another manifest, is refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marked import update

from qwen3vl_export.artifact import PARITY, open_artifact
from qwen3vl_export.errors import ParityError, Qwen3VLExportError

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLE = "#compared-with-pytorch"  # the heading above the parity table
SIGNS = {"max": "≤", "min": "≥", "equals": "="}
EXAM = ("exam", "accuracy")
TITLES = {
    "prompt": "prompt text and tokens",
    "preprocess": "resized pixels",
    "positions": "3-axis positions",
    "vision": "vision encoder, with every DeepStack map",
    "embeddings": "token and picture embeddings",
    "decoder": "decoder on given embeddings",
    "prefill": "whole prefill",
    "teacher_forced": "256 given tokens after the prompt",
    "chunked": "prefill in chunks",
    "decode": "decoding with a cache",
    "generate": "64 greedy tokens",
}


def evidence(artifact: Path) -> dict[str, Any]:
    """The artifact's parity.json.

    Raises:
        ArtifactError: the artifact is altered.
        ParityError: there is no evidence, it did not pass, or it is another build's.
    """
    opened = open_artifact(artifact)
    path = artifact / PARITY
    again = f"Run: qwen3vl-export verify {artifact}"
    if not path.is_file():
        raise ParityError(f"{path}: is missing", again)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if found["manifest_sha256"] != opened.manifest_sha256:
        raise ParityError(f"{path}: belongs to another build", again)
    if not found["passed"]:
        raise ParityError(f"{path}: did not pass", "Nothing is published from a failed verification")
    return found


def proof_line(found: dict[str, Any]) -> Iterator[str]:
    """The verdict in one line, linked to the table."""
    versions, ties = found["versions"], len(found["near_ties"])
    passed = sum(check["passed"] for check in found["checks"])
    yield (
        f"`{found['artifact']}`, {found['matrix']} matrix: **[{passed} of {found['planned']} checks pass]({TABLE})**"
        f" against transformers {versions['transformers']} on torch {versions['torch']}, with onnxruntime "
        f"{versions['onnxruntime']}; {ties or 'no'} near-tie{'' if ties == 1 else 's'}."
    )


def parity_table(found: dict[str, Any]) -> Iterator[str]:
    """One row a stage of the model; the exam has a table of its own."""
    yield "| compared with PyTorch | checks | worst of all checks (limit) |"
    yield "|---|--:|---|"
    for stage, entry in found["summary"].items():
        if entry is None or stage in EXAM:
            continue
        worst = ", ".join(
            f"{rule['measure'].replace('_', ' ')} {shown(entry['worst'][rule['measure']], rule)}"
            for rule in found["profile"]["rules"][stage]
        )
        yield f"| {TITLES.get(stage, stage)} | {entry['checks']} | {worst} |"


def exam_table(found: dict[str, Any]) -> Iterator[str]:
    yield "| pictures | questions | right through ONNX | right in PyTorch |"
    yield "|---|--:|--:|--:|"
    for case, entry in (found["exam"] or {}).items():
        scores = (f"{100 * entry[key]:.3g}%" for key in ("accuracy", "reference_accuracy"))
        yield f"| {case.replace('-', ' ')} | {entry['questions']:.0f} | {' | '.join(scores)} |"


def session(artifact: Path) -> Iterator[str]:
    """What the demonstration prints; setting up, building and verifying come before it and are left out."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), str(artifact)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    yield "```console"
    yield "$ ./scripts/demo"
    yield "[…]"
    yield done.stdout.strip()
    yield "```"


def shown(value: float | str | None, rule: dict[str, Any]) -> str:
    """A value with its limit; a cosine keeps the digits that tell it from 1."""
    if not isinstance(value, int | float):
        return value or "not measured"
    digits = f"{value:.7f}" if 0.99 < value < 1 else f"{value:.2g}"
    return f"{digits} ({SIGNS[rule['kind']]} {rule['limit']:.5g})"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the measured sections of README.md.")
    parser.add_argument("artifact", nargs="?", type=Path, default=ROOT / "artifacts" / "tiny")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    options = parser.parse_args()
    try:
        found = evidence(options.artifact)
        sections = {
            "proof": proof_line(found),
            "parity": parity_table(found),
            "exam": exam_table(found),
            "session": session(options.artifact),
        }
        return update(README, sections, options.check)
    except Qwen3VLExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
