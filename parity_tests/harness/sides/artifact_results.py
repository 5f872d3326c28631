"""Results of an artifact: each is computed once in a verification, whichever stages and rounds need it.

A result is named by what it is, by the content of its inputs, and by the artifact. The latest are kept in memory, up to
a number of bytes; on disk are those that several stages need, and all of them where checks are carried out in rounds.
A directory of results belongs to one verification (`unfinished.py`): the next one computes its own. Knows arrays and
files; nothing about graphs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from .reference import Deferred
from .reference_cache import Key, Store

REMEMBERED = 1 << 26  # bytes of results in memory
WORK = "unfinished"  # beside PyTorch's results: directories of verifications that have not ended

Result = TypeVar("Result")


class ArtifactResults:
    """The results of one verification.

    Args:
        store: on disk; None keeps none there.
        keep_all: whether checks are carried out in rounds, so that what one round computed is there in the next.
    """

    def __init__(self, store: Store | None = None, keep_all: bool = False) -> None:
        self.store = store
        self.keep_all = keep_all
        self.computed = 0  # results that were not there
        self._latest: OrderedDict[Key, Any] = OrderedDict()
        self._bytes = 0  # of the latest

    @classmethod
    def temporary(cls, root: Path, scope: str, keep_all: bool) -> ArtifactResults:
        """Results that nobody goes on from: on disk only if all are kept, and no longer than this object."""
        if not keep_all:
            return cls()
        parent = root / WORK
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=parent))
        results = cls(open_store(directory, scope), keep_all)
        weakref.finalize(results, shutil.rmtree, directory, ignore_errors=True)
        return results

    def variant(self, name: str) -> ArtifactResults:
        """Results of the artifact changed in some way, beside these."""
        store = self.store and Store(self.store.root, f"{self.store.scope} {name}", self.store.budget)
        return ArtifactResults(store, self.keep_all)

    def recall(self, key: Key, kind: type[Result], compute: Callable[[], Result], shared: bool = False) -> Result:
        """A result: from memory, from disk, or computed.

        Args:
            kind: `np.ndarray`, or a dataclass of arrays.
            shared: whether several checks need it.
        """
        if not (shared or self.keep_all):
            self.computed += 1
            return compute()
        if key not in self._latest:
            self._remember(key, self._read_or_compute(key, kind, compute))
        self._latest.move_to_end(key)
        result: Result = self._latest[key]
        return result

    def forget(self) -> None:
        """Drop what is in memory."""
        self._latest.clear()
        self._bytes = 0

    def clear(self) -> None:
        """Drop what is in memory and on disk."""
        self.forget()
        if self.store is not None:
            self.store.clear()

    def _read_or_compute(self, key: Key, kind: type[Result], compute: Callable[[], Result]) -> Result:
        stored = self.store.get(key, kind) if self.store is not None else None
        if stored is not None:
            return stored
        result = compute()
        self.computed += 1
        if self.store is not None:
            self.store.put(key, result)
        return result

    def _remember(self, key: Key, result: Any) -> None:
        """Keep a result in memory, and drop the oldest ones while they take too much; the latest always stays."""
        self._latest[key] = result
        self._bytes += bytes_of(result)
        while self._bytes > REMEMBERED and len(self._latest) > 1:
            self._bytes -= bytes_of(self._latest.popitem(last=False)[1])


def open_store(directory: Path, scope: str) -> Store:
    """Results in a directory that is deleted as a whole, so that none of them has to make room."""
    return Store(directory, scope, budget=sys.maxsize)


def bytes_of(result: Any) -> int:
    """Of an array, or of the arrays of a dataclass."""
    arrays = [getattr(result, field.name) for field in fields(result)] if is_dataclass(result) else [result]
    return sum(array.nbytes for array in arrays)


def ask_all(asks: Iterable[Callable[[], Result]]) -> list[Result]:
    """The results of several calls.

    Raises:
        Deferred: one of them is not there yet; all have been asked for.
    """
    results, deferred = [], False
    for ask in asks:
        try:
            results.append(ask())
        except Deferred:
            deferred = True
    if deferred:
        raise Deferred
    return results
