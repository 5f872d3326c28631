"""One line for every verification, in a file that outlives the artifacts: drift shows before a threshold does.

Each line is a JSON object; new lines are appended whole. Knows evidence and lines; nothing about checks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen3vl_export.console import say
from qwen3vl_export.errors import first_line
from qwen3vl_export.evidence import Evidence, Hardware, Number
from qwen3vl_export.json_form import from_json, to_json

NAME = "parity-history.jsonl"
LONGEST_LINE = 1_000_000  # characters; ours have some thousand
ADVICE = "The evidence is complete without it; choose another file with --history"


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


def record(path: Path, evidence: Evidence) -> list[PastRun]:
    """Add the line of a verification that has just ended, and return those of its artifact.

    The verdict does not depend on the history: what is wrong with it is a warning.
    """
    try:
        append(path, evidence)
    except OSError as error:
        say(f"warning: {path}: the history cannot be written ({first_line(error)}). {ADVICE}")
    try:
        return of_artifact(path, evidence.artifact)
    except OSError as error:
        say(f"warning: {path}: the history cannot be read ({first_line(error)}). {ADVICE}")
        return []


def append(path: Path, evidence: Evidence) -> None:
    """Add a line; begins a new one if the last one was cut short.

    Raises:
        OSError: it cannot be written, or is no regular file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    data = (to_json(past_run(evidence)) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        os.write(file, data if not end or os.pread(file, 1, end - 1) == b"\n" else b"\n" + data)
    finally:
        os.close(file)


def of_artifact(path: Path, artifact: str) -> list[PastRun]:
    """The lines about one artifact, oldest first; lines that cannot be read are ignored.

    Raises:
        OSError: the file cannot be read.
    """
    return [run for run in read(path) if run.artifact == artifact] if path.is_file() else []


def read(path: Path) -> Iterator[PastRun]:
    """Every line that can be read."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(LONGEST_LINE):
            with suppress(ValueError):
                yield from_json(PastRun, line)
