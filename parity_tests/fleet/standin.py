"""A harness that compares nothing: units that take a known time, so that tests of a fleet are not tests of parity.

Its functions travel to workers by name, as those of `parity_tests.shards` do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3vl_export.artifact import JUNIT, MANIFEST, PARITY
from qwen3vl_export.fleet.harness import SUMMARY, Harness
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.recipe.model import Recipe

SECONDS = {"quick": 0.0, "standard": 0.5, "full": 1.2}  # a unit takes, by matrix
WHOLE_SHARD = 1000.0  # ordinary cases: each unit becomes a shard of its own
COUNT = 4


def units(recipe: Recipe, matrix: str) -> dict[str, float]:
    return {f"unit-{index}": WHOLE_SHARD for index in range(COUNT)}


def verify_part(artifact: Path, matrix: str, names: Sequence[str], checkpoint: Path | None) -> bytes:
    time.sleep(SECONDS[matrix] * len(names))
    return json.dumps({"units": list(names), "manifest_sha256": sha256_file(artifact / MANIFEST)}).encode()


def merge_parts(artifact: Path, matrix: str, parts: Sequence[bytes]) -> Mapping[str, bytes]:
    found = [name for part in parts for name in json.loads(part)["units"]]
    values = {
        "artifact": artifact.name,
        "manifest_sha256": sha256_file(artifact / MANIFEST),
        "matrix": matrix,
        "passed": found == [f"unit-{index}" for index in range(COUNT)],
        "planned": COUNT,
        "failed": COUNT - len(found),
        "hardware": {"processor": "stand-in", "cores": 1},
        "seconds": {"total": 1.0},
        "speed": None,
    }
    text = json.dumps(values).encode()
    return {PARITY: text, SUMMARY: text, JUNIT: b"<testsuite/>", "parity.html": b"<!doctype html><title>Passed</title>"}


def forget() -> None:
    pass


def version() -> str:
    return "stand-in"


HARNESS = Harness(units, verify_part, merge_parts, forget, version)
