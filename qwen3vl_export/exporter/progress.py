"""How far the writing of weights is: bytes, rate and time left.

A bar on a terminal, a line now and then elsewhere. Knows nothing about what is written.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..console import format_duration, format_size

SECONDS = 15.0  # between two lines where there is no bar


@contextmanager
def writing(total: int, done: int, log: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes of each write, from any thread.

    Args:
        total: bytes that will be there in the end.
        done: bytes of these that are there already.
        log: takes a line where standard error is no terminal.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(total, done, log).advance
        return
    columns = (
        TextColumn("weights"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Lines printed meanwhile go above the bar, unless they go somewhere else altogether.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda count: bar.advance(task, count)


class Lines:
    """One line of progress every `SECONDS`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self, total: int, done: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.log, self.clock = total, done, log, clock
        self.began = self.told = clock()
        self.before = done
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self.done += count
            now = self.clock()
            if now - self.told < SECONDS:
                return
            self.told = now
            rate = max(1.0, (self.done - self.before) / (now - self.began))
            left = format_duration((self.total - self.done) / rate)
            self.log(
                f"weights: {format_size(self.done)} of {format_size(self.total)} "
                f"({self.done / max(1, self.total):.0%}), {format_size(round(rate))}/s, {left} left"
            )
