"""An estimate on the terminal: cases, seconds, memory, disk. Knows how it looks; nothing about how it was made."""

from __future__ import annotations

from pathlib import Path

from qwen3vl_export.console import console, format_duration, format_size, say, table

from ..plan import Check
from .activations import comparing_of, need_of
from .cost import Seconds
from .estimate import Estimate
from .machine import free_disk, memory_left

COLUMNS = ("case", "checks", "tokens", "patches", "new tokens", "time", "PyTorch", "artifact")
RIGHT = COLUMNS[1:]


def show(estimate: Estimate, artifact: Path, precision: str = "") -> None:
    """Print a line for each case and each task, then the totals, and what each side takes."""
    planned, resources = estimate.planned, estimate.resources
    rows = []
    groups: dict[str, list[Check]] = {}
    for check in planned.checks:
        if check.asks:
            groups.setdefault(title_of(check), []).append(check)
    for title, checks in groups.items():
        cases = [resources.cases[name] for name in dict.fromkeys(name for check in checks for name in check.asks)]
        seconds = sum((estimate.checks[check.id] for check in checks), Seconds())
        rows.append(
            (
                title,
                len(checks),
                f"{sum(case.rows * case.tokens for case in cases):,}",
                f"{sum(case.encoder.patches for case in cases):,}",
                "-" if all(case.pixels_only for case in cases) else f"{sum(case.rows * case.new for case in cases):,}",
                format_duration(seconds.total),
                format_size(max(need_of(resources.model, case.joined).total for case in cases)),
                format_size(max(comparing_of(resources.model, case) for case in cases)),
            )
        )
    console().print(table("", COLUMNS, rows, right=RIGHT))
    for line in describe(estimate, f"{artifact}, precision {precision}" if precision else str(artifact)):
        say(line)
    for left_out, reason in planned.left_out.items():
        say(f"not checked: {left_out} ({reason})")


def title_of(check: Check) -> str:
    """The name of its case, or of the task of its questions."""
    return check.case.name if check.case is not None else f"task {check.questions[0].task}"


def describe(estimate: Estimate, name: str) -> list[str]:
    """The totals, a line each."""
    planned, needs, rates, seconds = estimate.planned, estimate.resources.needs, estimate.rates, estimate.seconds
    cases = len({check.case.name for check in planned.checks if check.case})
    way = "both as a whole, side by side"
    if estimate.streamed:
        way = "PyTorch streamed, the artifact " + ("whole" if estimate.resources.piece() is None else "in pieces")
    left = memory_left(estimate.resources.memory)
    lines = [
        f"{name}: {len(planned.checks)} checks of {cases} cases of the {planned.matrix} matrix",
        f"time: about {format_duration(seconds.total)} (PyTorch {format_duration(seconds.pytorch)}, the artifact "
        f"{format_duration(seconds.artifact)}, comparing {format_duration(seconds.comparing)}), less what is cached; "
        f"an estimate: {1e-9 / rates.pytorch.many:,.0f} GFLOP/s in PyTorch, {1e-9 / rates.artifact.many:,.0f} in the "
        f"artifact, {1e-9 / rates.read:.1f} GB/s of the checkpoint, measured just now",
        f"memory: {format_size(max(left, 0))} may be taken; PyTorch takes "
        f"{format_size(needs.weights + needs.computing.total)} as a whole or {format_size(needs.pytorch)} streamed, "
        f"the artifact {format_size(needs.opened)} as a whole or {format_size(needs.artifact)} in pieces: {way}",
    ]
    if estimate.streamed:
        free = format_size(free_disk(estimate.resources.results))
        lines.append(
            f"disk: {format_size(estimate.disk)} of results, {free} are free in {estimate.resources.results}; "
            f"{estimate.passes} {'pass' if estimate.passes == 1 else 'passes'} over the checkpoint"
        )
    return lines
