"""Writes what README.md says was measured from an artifact: the line of proof, the tables and the demo's output.

The tables come from its parity.json, the session from running the demonstration on it.

    python scripts/update_readme.py [artifacts/tiny] [--check]

`--check` changes nothing and fails if the README says something else than the artifact does. Evidence that
did not pass, or that belongs to another manifest, is refused.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from marked import update

from qwen3vl_export.artifact import PARITY, open_artifact
from qwen3vl_export.errors import ParityError, Qwen3VLExportError
from qwen3vl_export.evidence import SIGNS, Evidence, Rule
from qwen3vl_export.json_form import from_json

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLE = "#compared-with-pytorch"  # the heading above the parity table
EXAM = ("exam", "accuracy")
TITLES = {
    "sampling": "sampling settings and stop ids",
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
    "packaged": "the second decoder, bit for bit",
}


def read_evidence(artifact: Path) -> Evidence:
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
    try:
        evidence = from_json(Evidence, path.read_bytes())
    except ValueError as error:
        raise ParityError(f"{path}: is not a parity report ({error})", again) from None
    if evidence.manifest_sha256 != opened.manifest_sha256:
        raise ParityError(f"{path}: belongs to another build", again)
    if not evidence.passed:
        raise ParityError(f"{path}: did not pass", "Nothing is published from a failed verification")
    return evidence


def proof_line(evidence: Evidence) -> Iterator[str]:
    """The verdict in one line, linked to the table."""
    versions, ties = evidence.versions, len(evidence.near_ties)
    passed = len(evidence.checks) - len(evidence.failures)
    yield (
        f"`{evidence.artifact}`, {evidence.matrix} matrix: **[{passed} of {evidence.planned} checks pass]({TABLE})**"
        f" against transformers {versions['transformers']} on torch {versions['torch']}, with onnxruntime "
        f"{versions['onnxruntime']}; {ties or 'no'} near-tie{'' if ties == 1 else 's'}."
    )


def parity_table(evidence: Evidence) -> Iterator[str]:
    """One row a stage of the model; the exam has a table of its own."""
    yield "| compared with PyTorch | checks | worst of all checks (limit) |"
    yield "|---|--:|---|"
    for stage, entry in evidence.summary.items():
        if entry is None or stage in EXAM:
            continue
        worst = ", ".join(
            f"{rule.measure.replace('_', ' ')} {with_limit(entry.worst[rule.measure], rule)}"
            for rule in evidence.profile.rules[stage]
        )
        yield f"| {TITLES.get(stage, stage)} | {entry.checks} | {worst} |"


def exam_table(evidence: Evidence) -> Iterator[str]:
    yield "| pictures | questions | right through ONNX | right in PyTorch |"
    yield "|---|--:|--:|--:|"
    for case, score in (evidence.exam or {}).items():
        shares = " | ".join(percent(share) for share in (score.accuracy, score.reference_accuracy))
        yield f"| {case.replace('-', ' ')} | {score.questions or 0:.0f} | {shares} |"


def percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.3g}%"


def session(artifact: Path) -> Iterator[str]:
    """What the demonstration prints; setting up, building and verifying come before it and are left out."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), str(artifact)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    yield "```console"
    yield "$ ./scripts/demo"
    yield "[…]"
    yield done.stdout.strip()
    yield "```"


def with_limit(value: float | None, rule: Rule) -> str:
    """A value with its limit; a cosine keeps the digits that tell it from 1."""
    if value is None:
        return "not measured"
    digits = f"{value:.7f}" if 0.99 < value < 1 else f"{value:.2g}"
    return f"{digits} ({SIGNS[rule.kind]} {rule.limit:.5g})"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the measured sections of README.md.")
    parser.add_argument("artifact", nargs="?", type=Path, default=ROOT / "artifacts" / "tiny")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    options = parser.parse_args()
    try:
        evidence = read_evidence(options.artifact)
        sections = {
            "proof": proof_line(evidence),
            "parity": parity_table(evidence),
            "exam": exam_table(evidence),
            "session": session(options.artifact),
        }
        return update(README, sections, options.check)
    except Qwen3VLExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
