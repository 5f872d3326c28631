"""One line for every verification, in a file that outlives the artifacts: drift shows before a threshold does.

Each line is a JSON object; new lines are appended whole. Knows evidence and lines; nothing about checks.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "parity-history.jsonl"
KEPT = (
    "artifact",
    "manifest_sha256",
    "matrix",
    "seed",
    "passed",
    "planned",
    "carried_out",
    "seconds",
    "versions",
    "hardware",
)


def append(path: Path, evidence: dict[str, Any]) -> None:
    """Add what a run found: the verdict, what it rests on, and the worst value of every judged measure."""
    worst = {stage: entry["worst"] for stage, entry in evidence["summary"].items() if entry is not None}
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: evidence[key] for key in KEPT},
        "profile": evidence["profile"]["name"],
        "failed": sum(not check["passed"] for check in evidence["checks"]),
        "worst": worst,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def of_artifact(path: Path, artifact: str) -> list[dict[str, Any]]:
    """The lines about one artifact, oldest first; lines that cannot be read are passed over."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and values.get("artifact") == artifact:
            found.append(values)
    return found
