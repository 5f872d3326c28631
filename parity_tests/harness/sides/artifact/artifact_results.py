"""Results of an artifact: each is computed once in a verification, whichever stages and rounds need it.

A result is named by what it is, by the content of its inputs, and by the artifact. The latest are kept in memory, up to
a number of bytes; on disk are those that several stages need, and all of them where checks are carried out in rounds.
A directory of results belongs to one verification (`unfinished.py`): the next one computes its own.

Where the artifact is run a piece at a time (`cut_sessions.py`), a result that is not there is not computed when it is
asked for: `Deferred` is raised, and `settle` has all that were asked for go through the pieces in step. Knows arrays
and files; nothing about what is computed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qwen3vl_export.errors import ParityError

from ...budget.split import within
from ..lockstep import run_in_step
from ..pytorch.reference_cache import Key, Store
from ..pytorch.results import Deferred
from .cut_sessions import Pieces

REMEMBERED = 1 << 26  # bytes of results in memory
WORK = "unfinished"  # beside PyTorch's results: directories of verifications that have not ended

Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    """A deferred result; `held` bytes stay in memory while it is computed."""

    compute: Callable[[], Any]
    held: int


class ArtifactResults:
    """The results of one verification.

    Args:
        store: on disk; None keeps none there.
        keep_all: whether checks are carried out in rounds, so that what one round computed is there in the next.
        pieces: the artifact's, if it is run a piece at a time; `store` is then needed and all are kept.
        together: bytes that computations may hold from piece to piece, all those in step together.
    """

    def __init__(
        self, store: Store | None = None, keep_all: bool = False, pieces: Pieces | None = None, together: int = 0
    ) -> None:
        self.store = store
        self.keep_all = keep_all
        self.pieces = pieces
        self.together = together
        self.requests: dict[Key, Request] = {}  # deferred results
        self.computed = 0  # results that were not there
        self._failed: dict[Key, Exception] = {}  # what went wrong with a request
        self._latest: OrderedDict[Key, Any] = OrderedDict()
        self._bytes = 0  # of the latest

    @classmethod
    def temporary(
        cls, root: Path, scope: str, keep_all: bool, pieces: Pieces | None = None, together: int = 0
    ) -> ArtifactResults:
        """Results that nobody goes on from: on disk only if all are kept, and no longer than this object."""
        if not keep_all:
            return cls()
        parent = root / WORK
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=parent))
        results = cls(open_store(directory, scope), keep_all, pieces, together)
        weakref.finalize(results, shutil.rmtree, directory, ignore_errors=True)
        return results

    def variant(self, name: str) -> ArtifactResults:
        """Results of the artifact changed in some way, beside these."""
        store = self.store and Store(self.store.root, f"{self.store.scope} {name}", self.store.budget)
        return ArtifactResults(store, self.keep_all, self.pieces, self.together)

    def recall(
        self, key: Key, kind: type[Result], compute: Callable[[], Result], shared: bool = False, held: int = 0
    ) -> Result:
        """A result: from memory, from disk, or computed.

        Args:
            kind: `np.ndarray`, or a dataclass of arrays.
            shared: whether several checks need it.
            held: bytes that the computation holds from piece to piece.

        Raises:
            Deferred: it is to be computed by `settle`.
            Exception: what was raised when it was computed.
        """
        if not (shared or self.keep_all):
            self.computed += 1
            return compute()
        if key not in self._latest:
            self._remember(key, self._read_or_compute(key, kind, compute, held))
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

    def settle(self, report: Callable[[str, int], None] = lambda *_: None) -> None:
        """Compute every result that was deferred, in step as far as memory allows.

        Args:
            report: is told each piece that is opened, and for how many results.
        """
        requests, self.requests = self.requests, {}
        for group in within(((entry, entry[1].held) for entry in requests.items()), self.together):
            assert self.pieces is not None
            computations = [partial(self._store, key, request.compute) for key, request in group]
            try:
                run_in_step(computations, self.pieces.order, self.pieces.loaded, report)
            finally:
                self.pieces.close()

    def _store(self, key: Key, compute: Callable[[], Any]) -> None:
        """Compute a result and write it; what goes wrong is for the check that needs it."""
        assert self.store is not None
        self.computed += 1
        try:
            self.store.put(key, compute())
            if not self.store.path(key).is_file():
                what = f"{self.store.root}: the disk refused a result of the artifact"
                raise ParityError(what, "Free some space, or pass --cache DIR")
        except Exception as error:
            self._failed[key] = error

    def _read_or_compute(self, key: Key, kind: type[Result], compute: Callable[[], Result], held: int) -> Result:
        stored = self.store.get(key, kind) if self.store is not None else None
        if stored is not None:
            return stored
        if key in self._failed:
            raise self._failed[key]
        if self.pieces is not None:
            self.requests[key] = Request(compute, held)
            raise Deferred
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
