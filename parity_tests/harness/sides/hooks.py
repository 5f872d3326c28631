"""Hooks between the runtime and its graphs: they see, and may change, what goes in and what comes out.

Faults of a runtime, not of a file, are planted here. Knows the runtime's sessions; nothing about mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.runtime.session import Sessions

from .bench import Bench

Arrays = dict[str, NDArray[Any]]
Before = Callable[[Arrays], Arrays]  # feeds -> feeds
After = Callable[[Arrays, Arrays], Arrays]  # feeds, outputs -> outputs


def keep_feeds(feeds: Arrays) -> Arrays:
    return feeds


def keep_outputs(feeds: Arrays, outputs: Arrays) -> Arrays:
    return outputs


class HookedSessions(Sessions):
    """The sessions of a runtime with hooks on one graph; everything else passes through."""

    def __init__(self, sessions: Sessions, graph: str, before: Before, after: After) -> None:
        super().__init__(sessions.artifact, sessions.threads, sessions.opener)
        self._unhooked = sessions
        self._graph = graph
        self._before = before
        self._after = after

    @property
    def shares_cache(self) -> bool:
        return self._unhooked.shares_cache

    def dtypes(self, graph: str) -> dict[str, np.dtype[Any]]:
        return self._unhooked.dtypes(graph)

    def open(self, graph: str) -> Any:
        return self._unhooked.open(graph)

    def run(self, graph: str, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[Any]:
        if graph != self._graph:
            return self._unhooked.run(graph, feeds, outputs)
        changed = self._before(dict(feeds))
        results = self._after(changed, dict(zip(outputs, self._unhooked.run(graph, changed, outputs), strict=True)))
        return [results[name] for name in outputs]

    def run_bound(
        self, graph: str, binding: Any, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        if graph != self._graph:
            self._unhooked.run_bound(graph, binding, feeds, outputs)
            return
        changed = self._before(dict(feeds))
        self._unhooked.run_bound(graph, binding, changed, outputs)
        for name, array in self._after(changed, dict(outputs)).items():
            outputs[name][:] = array


@contextmanager
def hook_graph(bench: Bench, graph: str, before: Before = keep_feeds, after: After = keep_outputs) -> Iterator[None]:
    """Inside, every run of `graph` goes through `before` and `after`."""
    sessions = bench.runtime.sessions
    bench.runtime.sessions = HookedSessions(sessions, graph, before, after)
    try:
        yield
    finally:
        bench.runtime.sessions = sessions
