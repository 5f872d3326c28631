"""Shows which check is being carried out: a bar on a terminal, a plain line for every case elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .plan import Check

PIPE_WIDTH = 160


def terminal() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show_progress(checks: Sequence[Check]) -> Iterator[Check]:
    """Yields the checks one after another and shows which is being carried out."""
    console = terminal()
    if not console.is_terminal:
        yield from print_cases(checks, console)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(checks))
        for check in checks:
            bar.update(task, description=check.id)
            yield check
            bar.advance(task)


def print_cases(checks: Sequence[Check], console: Console) -> Iterator[Check]:
    previous = ""
    for index, check in enumerate(checks):
        if check.name != previous:
            console.print(f"[{index + 1}/{len(checks)}] {check.name}", markup=False)
        previous = check.name
        yield check


def show_module(name: str, results: int) -> None:
    """Show which module PyTorch has loaded where it is streamed: a line on a terminal that the next one replaces."""
    console = terminal()
    line = f"PyTorch: {name}, {results} results"
    if console.is_terminal:
        console.print(line.ljust(console.width - 1), end="\r", markup=False)
    elif name.rsplit(".", 1)[-1] in ("0", "lm_head"):  # the first and last of the tower and the decoder
        console.print(line, markup=False)
