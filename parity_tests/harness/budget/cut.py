"""A plan within a budget of time: cases in order as long as they fit, the promise whole.

Knows plans and seconds; nothing about how these were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qwen3vl_export.console import format_duration
from qwen3vl_export.errors import ParityError
from qwen3vl_export.promise import TASK, missing_checks

from ..plan import Check, Plan, Subject


def within_time(planned: Plan, subject: Subject, seconds: Mapping[str, float], fixed: float, budget: float) -> Plan:
    """The plan without the cases that do not fit, which it lists as left out.

    Cases are taken in order, each if it fits into what those before it left; before all others those without which the
    recipe's promise would not be proven, then the questions of each task from its first on, so that no kind of question
    is preferred. Other checks of no case are kept.

    Args:
        seconds: that each check takes, by its id.
        fixed: seconds that are taken whatever is checked.
        budget: seconds.

    Raises:
        ParityError: what the recipe promises takes longer.
    """
    costs: dict[str, float] = {}
    for check in planned.checks:
        if check.case is not None:
            costs[check.case.name] = costs.get(check.case.name, 0.0) + seconds[check.id]
    kept = promised_cases(planned, subject)
    always = [check for check in planned.checks if check.case is None and check.stage != TASK]
    left = budget - fixed - sum(seconds[check.id] for check in always)
    left -= sum(costs[name] for name in kept)
    if left < 0:
        raise ParityError(
            f"what the recipe promises takes about {format_duration(budget - left)}, --time is "
            f"{format_duration(budget)}",
            "Allow more time, or see --plan",
        )
    asked, reasons, left = within_questions(planned, seconds, left)
    for name, cost in costs.items():
        if name not in kept and cost <= left:
            kept.add(name)
            left -= cost
        elif name not in kept:
            reasons[name] = f"left out for time: about {format_duration(cost)}"
    checks = tuple(
        check for check in planned.checks if is_kept(check, kept) and (check.stage != TASK or check.name in asked)
    )
    return replace(planned, checks=checks, left_out={**planned.left_out, **reasons})


def within_questions(
    planned: Plan, seconds: Mapping[str, float], left: float
) -> tuple[set[str], dict[str, str], float]:
    """The names of the questions of tasks that fit, the tasks that are cut with the reason, and the seconds left."""
    asked: set[str] = set()
    cut: dict[str, list[float]] = {}
    for check in planned.checks:
        task = check.name.partition("/")[0]
        if check.stage == TASK and task not in cut and seconds[check.id] <= left:
            asked.add(check.name)
            left -= seconds[check.id]
        elif check.stage == TASK:
            cut.setdefault(task, []).append(seconds[check.id])
    reasons = {
        f"{TASK} {task}": f"its last {len(costs):,} questions left out for time: about {format_duration(sum(costs))}"
        for task, costs in cut.items()
    }
    return asked, reasons, left


def promised_cases(planned: Plan, subject: Subject) -> set[str]:
    """The first cases that together leave nothing unproven which the whole plan proves."""
    kept: set[str] = set()

    def missing(names: set[str]) -> set[str]:
        checks = [(check.stage, check.name) for check in planned.checks if is_kept(check, names)]
        return set(missing_checks(subject.recipe, subject.graphs, subject.model_type, checks))

    lacking = missing(kept)
    for name in dict.fromkeys(check.case.name for check in planned.checks if check.case is not None):
        if len(missing({*kept, name})) < len(lacking):
            kept.add(name)
            lacking = missing(kept)
    return kept


def is_kept(check: Check, names: set[str]) -> bool:
    return check.case is None or check.case.name in names
