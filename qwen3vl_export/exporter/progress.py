"""Progress of writing weights: bytes, rate and time left.

A bar on a terminal, a line now and then elsewhere. Knows nothing about what is written.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..console import console, format_duration, format_size

SECONDS = 15.0  # between two lines where there is no bar


@contextmanager
def show_progress(total: int, done: int, log: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes of each write, from any thread.

    Args:
        total: bytes to be on the disk in the end.
        done: bytes of these that are already there.
        log: takes a line where standard error is not a terminal.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield ProgressLines(total, done, log).advance
        return
    columns = (
        TextColumn("weights"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Lines printed meanwhile appear above the bar, unless standard output goes elsewhere.
    with Progress(*columns, console=screen, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda count: bar.advance(task, count)


class ProgressLines:
    """One line of progress every `SECONDS`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self, total: int, done: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.log, self.clock = total, done, log, clock
        self.started_at = self.reported_at = clock()
        self.done_at_start = done
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Count bytes as written, and log a line if it is time for one."""
        with self._lock:
            self.done += count
            now = self.clock()
            if now - self.reported_at < SECONDS:
                return
            self.reported_at = now
            rate = max(1.0, (self.done - self.done_at_start) / (now - self.started_at))
            left = format_duration((self.total - self.done) / rate)
            self.log(
                f"weights: {format_size(self.done)} of {format_size(self.total)} "
                f"({self.done / max(1, self.total):.0%}), {format_size(round(rate))}/s, {left} left"
            )
