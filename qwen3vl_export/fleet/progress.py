"""A fleet's progress for a person: a bar for each kind of task on a terminal, a line for each task elsewhere.

Listens to events; knows nothing about who emits them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..console import console, say
from .events import Event
from .graph import KINDS

TITLES = {"estimate": "estimates", "build": "builds", "verify": "shards", "merge": "reports", "publish": "published"}


class ProgressDisplay:
    """A listener that shows progress inside its context.

    Args:
        totals: the number of tasks of each kind.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        self.total, self.ended = sum(totals.values()), 0
        self.running: Counter[str] = Counter()
        columns = (TextColumn("{task.fields[title]:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.description}"), console=console(), transient=True)
        self.on_terminal = sys.stdout.isatty()
        self.rows: dict[str, TaskID] = {
            kind: self.bars.add_task("", total=totals[kind], title=TITLES[kind]) for kind in KINDS if totals.get(kind)
        }

    def __enter__(self) -> Self:
        if self.on_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.on_terminal:
            self.bars.stop()

    def __call__(self, event: Event) -> None:
        name = event["event"]
        if name == "task-started":
            self._count(event["kind"], 1)
        elif name == "task-ended":
            self._count(event["kind"], -1)
            self.ended += 1
            if event["kind"] in self.rows:
                self.bars.advance(self.rows[event["kind"]])
            self._line(self._ended(event), bad=event["status"] not in ("made", "there"))
        elif name == "task-moved":
            self._count(event["kind"], -1)
            self._line(f"{event['kind']} {event['recipe']}: goes to another worker: {event['message']}", bad=True)
        elif name == "workers":
            gone = f", lost {', '.join(event['lost'])}" if event["lost"] else ""
            self._line(f"workers: {event['count']}{gone}", bad=bool(event["lost"]))
        elif name in ("scheduler-lost", "scheduler-back"):
            self._line(name.replace("-", ": "), bad=name == "scheduler-lost")

    def _ended(self, event: Event) -> str:
        how = "was there" if event["status"] == "there" else f"{event['seconds']:.1f} s"
        how = how if event["status"] in ("made", "there") else f"FAILED: {event.get('message', '')}"
        notices = "".join(f" ({notice})" for notice in event.get("notices", ()))
        return f"[{self.ended}/{self.total}] {event['kind']} {event['recipe']}: {how}{notices}"

    def _count(self, kind: str, change: int) -> None:
        self.running[kind] += change
        if kind in self.rows:
            count = self.running[kind]
            self.bars.update(self.rows[kind], description=f"{count} running" if count > 0 else "")

    def _line(self, text: str, bad: bool) -> None:
        if not self.on_terminal:
            say(text)
        elif bad:
            self.bars.console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
