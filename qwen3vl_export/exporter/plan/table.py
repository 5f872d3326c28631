"""A build's plan on the terminal. Knows how it looks; nothing about how it was made."""

from __future__ import annotations

from ...console import console, format_duration, format_size, say, table
from . import BuildPlan


def show(plan: BuildPlan) -> None:
    """Print every file with its bytes by dtype, then disk space, memory and time."""
    rows = [
        (
            file.name,
            f"{file.bytes:,}",
            ", ".join(f"{dtype} {format_size(count)}" for dtype, count in file.dtypes.items()),
        )
        for file in plan.files
    ]
    rows.append(("all files", f"{plan.bytes:,}", format_size(plan.bytes)))
    console().print(table("", ("file", "bytes", "weights"), rows, right=("bytes",), wrap="weights"))
    verdict = "enough" if plan.free >= plan.bytes else "NOT ENOUGH"
    parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in plan.seconds.items())
    say(f"disk: {format_size(plan.free)} free, {verdict}")
    say(f"peak memory: about {format_size(plan.memory)}: this process so far, and the slices in flight")
    say(
        f"time: about {format_duration(sum(plan.seconds.values()))} ({parts}), "
        "scaled up from one slice of each kind of weight"
    )
