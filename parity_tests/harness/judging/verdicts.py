"""From measures to verdicts, by the thresholds of `tolerances.yaml`.

Knows rules and numbers; does not know what was measured, or how. The strictness lives here: a rule whose measure is
missing, None, NaN or Inf fails, and so does a check that compared nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from qwen3vl_export import evidence
from qwen3vl_export.errors import ParityError
from qwen3vl_export.evidence import SIGNS, Kind, Rule, Verdict

from .measures import Measures

TOLERANCES = Path(__file__).with_name("tolerances.yaml")


@dataclass(frozen=True)
class Profile(evidence.Profile):
    """All rules of one precision: stage -> rules, plus the settings measures need."""

    def judge(self, stage: str, measures: Measures, compared: int) -> list[Verdict]:
        """Apply every rule of `stage`; one without rules is measured only.

        Args:
            compared: how many numbers were compared; zero is a failure in itself.
        """
        if stage not in self.rules:
            raise ParityError(f"{TOLERANCES.name}: profile {self.name} has no rule for {stage}", "Add one")
        verdicts = [Verdict("compared", "min", 1, compared, compared >= 1)]
        for rule in self.rules[stage]:
            value = measures.get(rule.measure)
            passed = value is not None and math.isfinite(value) and rule.holds(value)
            verdicts.append(
                Verdict(rule.measure, rule.kind, rule.limit, None if value is None else float(value), passed)
            )
        return verdicts


def parse_rule(where: str, measure: str, entry: Mapping[str, Any]) -> Rule:
    kinds: list[Kind] = [kind for kind in SIGNS if kind in entry]
    unknown = set(entry) - {*SIGNS, "reason", "source"}
    if len(kinds) != 1 or unknown or not entry.get("reason") or not entry.get("source"):
        raise ParityError(
            f"{where}.{measure}: needs one of max, min, equals, and a reason and a source; found {sorted(entry)}",
            "Every threshold says why it is what it is",
        )
    (kind,) = kinds
    return Rule(measure, kind, float(entry[kind]), entry["reason"].strip(), entry["source"].strip())


@cache
def load_profiles(path: Path = TOLERANCES) -> dict[str, Profile]:
    """Every profile of a tolerances file, strictly read."""
    profiles = {}
    for name, stages in yaml.safe_load(path.read_text("utf-8")).items():
        settings = {key: float(entry["value"]) for key, entry in stages.pop("settings").items()}
        rules = {
            stage: tuple(parse_rule(f"{path.name}: {name}.{stage}", measure, rule) for measure, rule in entries.items())
            for stage, entries in stages.items()
        }
        profiles[name] = Profile(name, settings, rules)
    return profiles


def load_compute_profile(dtype: str) -> Profile:
    """The profile for computing in a recipe's dtype with weights that are equal on both sides."""
    return load_profile("float16" if dtype == "float16" else "float32")


def load_profile(name: str) -> Profile:
    """One profile by name.

    Raises:
        ParityError: there is no such profile.
    """
    profiles = load_profiles()
    if name not in profiles:
        raise ParityError(f"{TOLERANCES.name}: no profile named {name}", f"It has {', '.join(profiles)}")
    return profiles[name]
