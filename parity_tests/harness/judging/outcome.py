"""The result of one check: its measures, the verdicts over them, and whether it passed.

Knows no check and no threshold. An outcome becomes JSON without losing what matters: unmeasured is null, and a
number that JSON cannot hold is the word NaN or Infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .measures import Difference, Measures
from .verdicts import Profile, Verdict


@dataclass(frozen=True)
class Finding:
    """What a check returns: measures and how many numbers they are based on, not yet judged.

    `where` says where the worst of it is; `differences` are greedy steps at which the sides chose different tokens.
    """

    measures: Measures
    compared: int
    where: str = ""
    differences: Sequence[Difference] = ()


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

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "id": self.id, "passed": self.passed, "seconds": round(self.seconds, 3)}
        result: dict[str, Any] = json_ready(values)
        return result

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """The inverse of `to_json`."""
        known = {key: value for key, value in numbers_back(values).items() if key not in ("id", "passed")}
        known["verdicts"] = tuple(Verdict(**verdict) for verdict in known["verdicts"])
        known["differences"] = tuple(Difference(**difference) for difference in known["differences"])
        return cls(**known)


def judge(stage: str, case: str, finding: Finding, profile: Profile, seconds: float) -> Outcome:
    """The outcome of a finding under a profile."""
    verdicts = profile.judge(stage, finding.measures, finding.compared)
    measures = {"compared": finding.compared, **finding.measures}
    return Outcome(stage, case, seconds, measures, tuple(verdicts), finding.where, tuple(finding.differences))


WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_ready(value: Any) -> Any:
    """Non-finite floats as words; everything else as it is."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def numbers_back(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: numbers_back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers_back(item) for item in value]
    return WORDS.get(value, value) if isinstance(value, str) else value
