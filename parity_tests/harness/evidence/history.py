"""One line for every verification, in a file that outlives the artifacts: drift shows before a threshold does.

Each line is a JSON object; new lines are appended whole. Knows evidence and lines; nothing about checks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen3vl_export.evidence import Evidence, Hardware, Number
from qwen3vl_export.json_form import from_json, to_json

NAME = "parity-history.jsonl"


@dataclass(frozen=True)
class PastRun:
    """A line of the history: the verdict of a verification, what it rests on, and the worst value of every measure.

    Attributes:
        time: when it ended, in ISO 8601.
        profile: name of the thresholds.
        failed: number of checks.
        worst: stage -> measure -> value.
    """

    time: str
    artifact: str
    manifest_sha256: str
    matrix: str
    seed: int
    passed: bool
    planned: int
    carried_out: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str | None]
    hardware: Hardware
    profile: str
    failed: int
    worst: Mapping[str, Mapping[str, Number | None]]


def past_run(evidence: Evidence) -> PastRun:
    """The line of a verification that has just ended."""
    derived: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": evidence.profile.name,
        "failed": len(evidence.failures),
        "worst": {stage: entry.worst for stage, entry in evidence.summary.items() if entry is not None},
    }
    copied = {field.name: getattr(evidence, field.name) for field in fields(PastRun) if field.name not in derived}
    return PastRun(**derived, **copied)


def append(path: Path, evidence: Evidence) -> None:
    """Add the line of a verification that has just ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (to_json(past_run(evidence)) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def of_artifact(path: Path, artifact: str) -> list[PastRun]:
    """The lines about one artifact, oldest first; lines that cannot be read are ignored."""
    return [run for run in read(path) if run.artifact == artifact] if path.is_file() else []


def read(path: Path) -> Iterator[PastRun]:
    """Every line that can be read."""
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            yield from_json(PastRun, line)
        except ValueError:
            continue
