"""A fleet's plan on the terminal. Knows how it looks; nothing about how it is made."""

from __future__ import annotations

from collections.abc import Sequence

from ..console import console, format_duration, format_size, say, table
from .account import JobStatus
from .graph import critical_path

COLUMNS = ("recipe", "to do", "bytes", "build", "peak memory", "verify", "peak memory ", "shards")
RIGHT = ("bytes", "build", "peak memory", "verify", "peak memory ", "shards")
WORKERS = (1, 8, 64)  # numbers for which the duration is printed


def show(statuses: Sequence[JobStatus]) -> None:
    """Print a line for each recipe, and the totals."""
    rows = []
    for status in statuses:
        if status.estimate is None:
            rows.append((status.job.name, "; ".join(status.failures) or "not estimated", *[""] * 6))
            continue
        verifying = [task for task in status.tasks if task.kind == "verify"]
        kinds = list(dict.fromkeys(task.kind for task in status.missing))
        rows.append(
            (
                status.job.name,
                ", ".join(kinds) or "nothing",
                f"{status.estimate.size:,}",
                format_duration(status.estimate.build_seconds),
                format_size(status.estimate.build_memory),
                format_duration(sum(task.seconds for task in verifying)),
                format_size(status.estimate.verify_memory),
                str(len(verifying)),
            )
        )
    console().print(table("", COLUMNS, rows, right=RIGHT, wrap="to do"))
    missing = [task for status in statuses for task in status.missing if status.estimate is not None]
    work = sum(task.seconds for task in missing)
    longest = max(critical_path(missing).values(), default=0.0)
    written = sum(
        status.estimate.size
        for status in statuses
        if status.estimate and any(t.kind == "build" for t in status.missing)
    )
    say(
        f"{len(missing)} tasks, {format_size(written)} to write, {format_duration(work)} of work; "
        "estimates, made on this machine"
    )
    for count in WORKERS:
        say(f"  {count:3} workers: about {format_duration(max(work / count, longest))}")
    if not missing and statuses:
        say("nothing to do: everything is in the store")
