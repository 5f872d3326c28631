"""The format of `parity.json`, for its readers: strict models, and the JSON schema made from them.

    python -m parity_tests.harness.evidence.schema > docs/parity.schema.json

A number that JSON cannot hold is the word NaN, Infinity or -Infinity; what was not measured is null. Knows the format;
nothing about how it came to be.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = float | Literal["NaN", "Infinity", "-Infinity"]
Measured = Number | bool | None


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Checkpoint(_Strict):
    """Where the checkpoint comes from; `revision` is `local` for a directory."""

    source: str
    revision: str


class Rule(_Strict):
    """One limit on one measure, with its reason and source."""

    measure: str
    kind: Literal["max", "min", "equals"]
    limit: float
    reason: str
    source: str


class Profile(_Strict):
    """The thresholds of the artifact's precision, as they were applied: stage -> rules."""

    name: str
    settings: dict[str, float]
    rules: dict[str, list[Rule]]


class Verdict(_Strict):
    """One rule applied to one value."""

    measure: str
    kind: Literal["max", "min", "equals"]
    limit: float
    value: Number | None
    passed: bool


class Difference(_Strict):
    """A greedy step at which the sides chose different tokens; a gap is one side's logit distance of the two."""

    row: int
    step: int
    candidate_token: int
    reference_token: int
    candidate_gap: Number
    reference_gap: Number
    near_tie: bool


class NearTie(Difference):
    """A difference that is explained, and the check it was met in."""

    check: str


class Check(_Strict):
    """One comparison: what was measured, and the verdicts over it; `error` where it could not be carried out."""

    id: str
    stage: str
    case: str
    passed: bool
    seconds: float = Field(ge=0)
    measures: dict[str, Measured]
    verdicts: list[Verdict]
    where: str
    differences: list[Difference]
    error: str | None
    diagnosis: str | None


class Summary(_Strict):
    """All checks of one stage; `worst` has the value of each judged measure that comes closest to its limit."""

    checks: int
    failed: int
    worst: dict[str, Number | None]


class Exam(_Strict):
    """The questions of one group, and the share each side answered right."""

    questions: Number | None
    accuracy: Number | None
    reference_accuracy: Number | None


class Precision(Exam):
    """What the artifact's precision costs against PyTorch in float32; KL in nats."""

    positions: int
    mean_kl: Number | None
    worst_kl: Number | None
    top1_agreement: Number | None


class Point(_Strict):
    """One value inside a graph beside PyTorch's."""

    stage: str
    module: str
    side: Literal["input", "output"]
    op: str
    nmse: Number | None
    worst_token_cosine: Number | None
    max_abs: Number | None
    diverged: bool


class Trail(_Strict):
    """A graph layer by layer, for every stage of its build."""

    graph: str
    case: str
    message: str
    stages: list[str]
    unmatched: list[str]
    points: list[Point]


class Speed(_Strict):
    """What the runtime's own generation was clocked at; prompts count up to the first token, with their pictures."""

    threads: int | None = Field(description="Null where onnxruntime chose.")
    answers: int = Field(ge=1)
    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    new_seconds: float


class Evidence(_Strict):
    """What one verification found, and all it rests on."""

    format: Literal[1]
    passed: bool = Field(description="Everything planned was carried out and passed.")
    artifact: str
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the manifest.json this is evidence about.")
    checkpoint: Checkpoint
    matrix: Literal["quick", "standard", "full"]
    seed: int
    planned: int = Field(ge=0)
    carried_out: int = Field(ge=0)
    summary: dict[str, Summary | None] = Field(description="By stage; null where nothing was measured.")
    precision: Precision | None = Field(description="Over all positions of prefill and decode; null without them.")
    exam: dict[str, Exam] | None
    near_ties: list[NearTie]
    left_out: dict[str, str] = Field(description="What could not be checked on this artifact, and why.")
    seconds: dict[str, float]
    speed: Speed | None = Field(description="Null where no answer was generated, or by processes of `pytest -n`.")
    reference_results: dict[str, int] | None
    versions: dict[str, str | None]
    hardware: dict[str, str | int | None]
    profile: Profile
    checks: list[Check]
    bisect: list[Trail] | None


def schema_text() -> str:
    """The schema as it is published."""
    schema: dict[str, Any] = Evidence.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "parity.json"}
    return json.dumps({**schema, **head}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
