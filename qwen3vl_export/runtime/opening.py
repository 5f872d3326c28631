"""Opens graphs in threads, ahead of their use, and stops where the process ends first.

A thread that is opening a graph cannot be left alone then: onnxruntime aborts the process. So opening is cancelled,
which takes a tenth of a second, and waited for.

Knows threads; nothing about graphs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Thread, current_thread
from typing import Any


def open_in_threads(opener: Callable[[str], Any], graphs: Iterable[str]) -> list[Thread]:
    """Threads that open one graph each; an error is left to whoever opens it next."""

    def attempt(graph: str) -> None:
        with contextlib.suppress(Exception):
            opener(graph)

    threads = [Thread(target=partial(attempt, graph), name=f"open {graph}", daemon=True) for graph in graphs]
    for thread in threads:
        thread.start()
    return threads


def stop_opening(threads: Iterable[Thread], options: Mapping[str, Any]) -> None:
    """Cancel what threads are opening, and wait for them; one of them may be the caller, who held the last reference.

    Args:
        options: the `onnxruntime.SessionOptions` of each graph.
    """
    for settings in list(options.values()):
        settings.set_load_cancellation_flag(True)
    for thread in threads:
        if thread is not current_thread():
            thread.join()
