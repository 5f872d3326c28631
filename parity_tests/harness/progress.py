"""Shows which check is being carried out: a bar on a terminal, a plain line for every case elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qwen3vl_export.console import Terminal, console, say

from .plan import Check


def show_progress(checks: Sequence[Check]) -> Iterator[Check]:
    """Yields the checks one after another and shows which is being carried out."""
    screen = console()
    if not screen.is_terminal:
        yield from print_cases(checks, screen)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=len(checks))
        for check in checks:
            bar.update(task, description=check.id)
            yield check
            bar.advance(task)


def print_cases(checks: Sequence[Check], screen: Terminal) -> Iterator[Check]:
    previous = ""
    for index, check in enumerate(checks):
        if check.name != previous:
            screen.print(f"[{index + 1}/{len(checks)}] {check.name}", markup=False)
        previous = check.name
        yield check


def show_module(name: str, results: int) -> None:
    """Show where PyTorch is in a model that it streams: a line for every tenth layer, and for the output head."""
    layer = name.rpartition(".")[2]
    if layer == "lm_head" or (layer.isdigit() and int(layer) % 10 == 0):
        say(f"PyTorch: {name}, {results} results")
