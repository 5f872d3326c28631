"""A fleet's plan on the terminal. Knows how it looks; nothing about how it was found."""

from __future__ import annotations

from collections.abc import Sequence

from ..console import console, format_duration, format_size, say, table
from .account import Standing
from .graph import critical_path

COLUMNS = ("recipe", "to do", "bytes", "build", "peak memory", "verify", "peak memory ", "shards")
RIGHT = ("bytes", "build", "peak memory", "verify", "peak memory ", "shards")
WORKERS = (1, 8, 64)  # for which a duration is told


def show(found: Sequence[Standing]) -> None:
    """Print a line for each recipe, and what all of it takes."""
    rows = []
    for one in found:
        if one.estimate is None:
            rows.append((one.job.name, "; ".join(one.failures) or "not estimated", *[""] * 6))
            continue
        verifying = [task for task in one.tasks if task.kind == "verify"]
        kinds = list(dict.fromkeys(task.kind for task in one.missing))
        rows.append(
            (
                one.job.name,
                ", ".join(kinds) or "nothing",
                f"{one.estimate.size:,}",
                format_duration(one.estimate.build_seconds),
                format_size(one.estimate.build_memory),
                format_duration(sum(task.seconds for task in verifying)),
                format_size(one.estimate.verify_memory),
                str(len(verifying)),
            )
        )
    console().print(table("", COLUMNS, rows, right=RIGHT, wrap="to do"))
    missing = [task for one in found for task in one.missing if one.estimate is not None]
    work = sum(task.seconds for task in missing)
    longest = max(critical_path(missing).values(), default=0.0)
    written = sum(one.estimate.size for one in found if one.estimate and any(t.kind == "build" for t in one.missing))
    say(
        f"{len(missing)} tasks, {format_size(written)} to write, {format_duration(work)} of work; "
        "estimates, made on this machine"
    )
    for count in WORKERS:
        say(f"  {count:3} workers: about {format_duration(max(work / count, longest))}")
    if not missing and found:
        say("nothing to do: everything is in the store")
