"""The evidence of a verification: the types of what `parity.json` and a fleet's `summary.json` hold.

The parity harness writes them; publishing, the pages and the fleet read them, and docs/parity.schema.json is made from
them. `json_form` has their JSON form. What was not measured is None.

Knows the format; nothing about how the numbers were measured. Imports neither torch nor pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from ..contract import TIERS
from ..hash_cache import Digest
from ..json_form import AtLeast, Later, OneOf, Words
from .tasks import AnsweredQuestion, TaskScore

FORMAT = 1  # of parity.json
Kind = Literal["max", "min", "equals"]
SIGNS: Mapping[Kind, str] = {"max": "≤", "min": "≥", "equals": "="}

# Text in an annotation describes the field in the schema.
Number = Annotated[float, Words()]
Measures = Mapping[str, Number | bool | None]
Count = Annotated[int, AtLeast(0)]


@dataclass(frozen=True)
class CheckpointSource:
    """Where the checkpoint comes from; `revision` is `local` for a directory."""

    source: str
    revision: str


@dataclass(frozen=True)
class Limit:
    """The limit of a measure."""

    measure: str
    kind: Kind
    limit: float

    def holds(self, value: float | int | bool) -> bool:
        """Whether a value keeps the limit."""
        if self.kind == "equals":
            return value == self.limit
        return value <= self.limit if self.kind == "max" else value >= self.limit

    def share(self, value: float | None) -> float | None:
        """The part of the limit that a value uses: 0 is exact, 1 is the limit; None where that has no meaning.

        Lower limits count from 1, the best value of a cosine or of an agreement.
        """
        if value is None or not math.isfinite(value):
            return None
        if self.kind == "equals":
            return 0.0 if value == self.limit else math.inf
        if self.kind == "max":
            return value / self.limit if self.limit else None
        slack = 1 - self.limit
        return max(0.0, 1 - value) / slack if slack else None


@dataclass(frozen=True)
class Rule(Limit):
    """One limit on one measure, with its reason and source."""

    reason: str
    source: str


@dataclass(frozen=True)
class Verdict(Limit):
    """One rule applied to one value; `value` is None where nothing was measured."""

    value: Number | None
    passed: bool

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{self.measure} {value} ({SIGNS[self.kind]} {self.limit:.6g})"


@dataclass(frozen=True)
class Profile:
    """The thresholds of the artifact's precision, as they were applied: stage -> rules."""

    name: str
    settings: Mapping[str, float]
    rules: Mapping[str, tuple[Rule, ...]]


@dataclass(frozen=True)
class Difference:
    """A greedy step at which the sides chose different tokens; a gap is one side's logit distance of the two."""

    row: int
    step: int
    candidate_token: int
    reference_token: int
    candidate_gap: Number
    reference_gap: Number
    near_tie: bool


@dataclass(frozen=True)
class InCheck:
    """Something that happened in a check, which is named by its id."""

    check: str


@dataclass(frozen=True)
class NearTie(Difference, InCheck):
    """A difference that is explained, and the check it was met in."""


@dataclass(frozen=True)
class CheckResult:
    """One comparison: what was measured, and the verdicts over it; `error` where it could not be carried out."""

    stage: str
    case: str
    seconds: Annotated[float, AtLeast(0)]
    measures: Measures
    verdicts: tuple[Verdict, ...]
    where: str
    differences: tuple[Difference, ...]
    error: str | None
    diagnosis: str | None
    id: str
    passed: bool
    answers: Annotated[
        tuple[AnsweredQuestion, ...] | None, Later(), "Of the stages about questions; absent in earlier versions."
    ] = None


@dataclass(frozen=True)
class StageSummary:
    """All checks of one stage; `worst` has the value of each judged measure that comes closest to its limit."""

    checks: int
    failed: int
    worst: Mapping[str, Number | None]


@dataclass(frozen=True)
class ExamScore:
    """The questions of one group, and the share each side answered right."""

    questions: Number | None
    accuracy: Number | None
    reference_accuracy: Number | None


@dataclass(frozen=True)
class LogitCost:
    """How far logits are from PyTorch's in float32; KL in nats."""

    positions: int
    mean_kl: Number | None
    worst_kl: Number | None
    top1_agreement: Number | None


@dataclass(frozen=True)
class PrecisionCost(ExamScore, LogitCost):
    """What the artifact's precision costs against PyTorch in float32; KL in nats."""


@dataclass(frozen=True)
class Answer:
    """The checks that answer a question."""

    checks: Count
    failed: Count


@dataclass(frozen=True)
class Answers:
    """The two questions about an artifact: whether its graphs are right, and what its precision costs."""

    graph: Annotated[Answer | None, "Null where no check can tell a wrong graph from the cost of rounding."]
    cost: Annotated[Answer | None, "Null where no weight is quantized: the checks of the graph limit the cost."]
    rounding: Annotated[LogitCost | None, "Of activations alone, on the decoder; null where they are not rounded."]
    text_loss: Annotated[
        Number | None, "PyTorch's on the text of `teacher_forced`, over that of equally likely tokens."
    ]


@dataclass(frozen=True)
class Point:
    """One value of a graph compared with PyTorch's: the input or output of a layer, or the output of the graph."""

    stage: str
    module: str
    side: Annotated[str, OneOf(("input", "output"))]
    op: str
    nmse: Number | None
    worst_token_cosine: Number | None
    max_abs: Number | None
    diverged: bool


@dataclass(frozen=True)
class GraphTrail:
    """A graph layer by layer, for every stage of its build."""

    graph: str
    case: str
    points: tuple[Point, ...]
    unmatched: tuple[str, ...]
    stages: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Speed:
    """How fast the runtime's own generation was; prompts count up to the first token, with their pictures."""

    threads: Annotated[int | None, "Null where onnxruntime chose."]
    answers: Annotated[int, AtLeast(1)]
    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    new_seconds: float

    @property
    def prompt_rate(self) -> float:
        """Tokens a second, reading prompts."""
        return self.prompt_tokens / max(self.prompt_seconds, 1e-9)

    @property
    def new_rate(self) -> float:
        """Tokens a second, generating."""
        return self.new_tokens / max(self.new_seconds, 1e-9)

    @property
    def answer_rate(self) -> float:
        """Generated tokens a second, reading the prompts included."""
        return self.new_tokens / max(self.prompt_seconds + self.new_seconds, 1e-9)


@dataclass(frozen=True)
class Hardware:
    """The machine; null where the system does not say."""

    processor: str | None
    cores: int | None
    system: str


@dataclass(frozen=True)
class Evidence:
    """What one verification found, and all it rests on."""

    format: Annotated[int, OneOf((FORMAT,))]
    passed: Annotated[bool, "Everything planned was carried out and passed."]
    artifact: str
    manifest_sha256: Annotated[Digest, "Of the manifest.json this is evidence about."]
    checkpoint: CheckpointSource
    matrix: Annotated[str, OneOf(TIERS)]
    seed: int
    planned: Count
    carried_out: Count
    summary: Annotated[Mapping[str, StageSummary | None], "By stage; null where nothing was measured."]
    precision: Annotated[PrecisionCost | None, "Over all positions of prefill and decode; null without them."]
    exam: Mapping[str, ExamScore] | None
    near_ties: tuple[NearTie, ...]
    left_out: Annotated[Mapping[str, str], "What could not be checked on this artifact, and why."]
    seconds: Mapping[str, float]
    speed: Annotated[Speed | None, "Null where no answer was generated, or by processes of `pytest -n`."]
    reference_results: Mapping[str, int] | None
    versions: Mapping[str, str | None]
    hardware: Hardware
    profile: Profile
    checks: tuple[CheckResult, ...]
    bisect: tuple[GraphTrail, ...] | None
    answers: Annotated[Answers | None, Later(), "Null without checks, and absent in earlier versions."] = None
    pieces: Annotated[
        Mapping[str, Count] | None, Later(), "How many pieces each graph was run in, one after another; null if whole."
    ] = None
    device: Annotated[str | None, Later(), "That PyTorch computed on: `cpu` or `cuda`; null if not recorded."] = None
    tasks: Annotated[
        Mapping[str, TaskScore] | None, Later(), "Scores of the exam and of users' tasks; absent in earlier versions."
    ] = None

    @property
    def failures(self) -> list[CheckResult]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


@dataclass(frozen=True)
class Summary:
    """What a fleet's `summary.json` holds of one verification: verdict, counts and speed, without the checks."""

    artifact: str
    manifest_sha256: Digest
    matrix: Annotated[str, OneOf(TIERS)]
    passed: bool
    planned: Count
    hardware: Hardware
    speed: Speed | None
    failed: Count
    seconds: Mapping[str, float]


def summarize(evidence: Evidence) -> Summary:
    """The summary of a verification."""
    copied = {field.name: getattr(evidence, field.name) for field in fields(Summary) if field.name != "failed"}
    return Summary(failed=len(evidence.failures), **copied)
