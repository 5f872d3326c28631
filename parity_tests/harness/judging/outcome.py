"""The result of one check: its measures, the verdicts over them, and whether it passed.

Knows no check and no threshold. An outcome becomes JSON without losing what matters: unmeasured is null, and a
number that JSON cannot hold is the word NaN or Infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from qwen3vl_export.evidence import CheckResult, Difference, Verdict
from qwen3vl_export.evidence.tasks import AnsweredQuestion
from qwen3vl_export.json_form import from_values, to_values

from .measures import Measures
from .verdicts import Profile


@dataclass(frozen=True)
class Finding:
    """What a check returns: measures and how many numbers they are based on, not yet judged.

    `where` says where the worst of it is; `differences` are greedy steps at which the sides chose different tokens.
    """

    measures: Measures
    compared: int
    where: str = ""
    differences: Sequence[Difference] = ()
    answers: tuple[AnsweredQuestion, ...] | None = None  # of questions that were asked


@dataclass(frozen=True)
class Outcome:
    """A judged check. `error` is set instead of measures where the check could not be carried out."""

    stage: str
    case: str
    seconds: float
    measures: Measures = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()
    where: str = ""
    differences: Sequence[Difference] = ()
    error: str | None = None
    diagnosis: str | None = None
    answers: tuple[AnsweredQuestion, ...] | None = None

    @property
    def id(self) -> str:
        return f"{self.stage}[{self.case}]"

    @property
    def passed(self) -> bool:
        return self.error is None and bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    @property
    def near_ties(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.near_tie]

    @property
    def message(self) -> str:
        """One line on what is wrong; empty if nothing is."""
        if self.passed:
            return ""
        broken = [str(verdict) for verdict in self.verdicts if not verdict.passed]
        reason = self.error or "; ".join(broken) or "nothing was judged"
        parts = [f"{self.id}: {reason}", self.where, f"Looks like: {self.diagnosis}" if self.diagnosis else ""]
        return ". ".join(part for part in parts if part)

    @property
    def result(self) -> CheckResult:
        """What `parity.json` holds of it."""
        return CheckResult(
            stage=self.stage,
            case=self.case,
            seconds=round(self.seconds, 3),
            measures=self.measures,
            verdicts=tuple(self.verdicts),
            where=self.where,
            differences=tuple(self.differences),
            error=self.error,
            diagnosis=self.diagnosis,
            id=self.id,
            passed=self.passed,
            answers=self.answers,
        )

    @classmethod
    def of_result(cls, result: CheckResult) -> Outcome:
        """The inverse of `result`."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = to_values(self.result)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """The inverse of `to_json`.

        Raises:
            ValueError: they are no outcome.
        """
        return cls.of_result(from_values(CheckResult, values))


def judge(stage: str, case: str, finding: Finding, profile: Profile, seconds: float) -> Outcome:
    """The outcome of a finding under a profile."""
    verdicts = profile.judge(stage, finding.measures, finding.compared)
    measures = {"compared": finding.compared, **finding.measures}
    return Outcome(
        stage,
        case,
        seconds,
        measures,
        tuple(verdicts),
        finding.where,
        tuple(finding.differences),
        answers=finding.answers,
    )
