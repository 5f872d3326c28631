"""Results of PyTorch: in memory, on disk, or deferred until they are computed with others.

A few are kept in memory, all of them on disk (`reference_cache.py`). Knows keys, arrays and files; computes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

from qwen3vl_export.errors import ParityError

from .calls import Request
from .reference_cache import Key, Store, arrays_of

VISION = "vision"  # in the key of a result of the tower alone
REMEMBERED_CASES = 6  # results cached in memory; the plan goes case by case, so a few are enough
REMEMBERED_BYTES = 1 << 28  # of them together, but for the last

Result = TypeVar("Result")


class Deferred(Exception):
    """A result of PyTorch is not there yet: `settle` of its reference computes it."""


class Results:
    """The results of one model.

    Args:
        checkpoint: whose results they are, for what is said about them.
        store: on disk; None keeps none there.
        deferring: whether a result that is not there is computed later, with others; all are then on disk alone.
        tower: results of another model whose tower has the same weights: features of pictures are shared with it.
    """

    def __init__(self, checkpoint: Path, store: Store | None, deferring: bool, tower: Results | None = None) -> None:
        self.checkpoint = checkpoint
        self.store = store
        self.deferring = deferring
        self.tower = tower
        self.requests: dict[Key, Request] = {}  # deferred results
        self.from_disk = 0  # results an earlier run had computed
        self._computed: set[Key] = set()  # keys of results that this run computed
        self._cache: OrderedDict[Key, Any] = OrderedDict()

    @property
    def computed(self) -> int:
        """How many results PyTorch had to compute."""
        return len(self._computed)

    @property
    def counts(self) -> dict[str, int]:
        """How many results were computed, how many an earlier run had computed, how many of the former streamed."""
        return {
            "computed": self.computed,
            "from_disk": self.from_disk,
            "streamed": self.computed if self.deferring else 0,
        }

    def find(self, key: Key, kind: type[Result]) -> Result | None:
        """A result that is in memory or on disk."""
        if key not in self._cache:
            owner = self._owner(key)
            stored = owner.store.get(key, kind) if owner.store is not None else None
            if stored is None:
                return None
            self.from_disk += key not in owner._computed
            self._cache[key] = stored
        self._cache.move_to_end(key)
        self._bound_cache()
        result: Result = self._cache[key]
        return result

    def keep(self, key: Key, result: Result) -> Result:
        """A new result, stored; where it will be read from disk alone, it has to be there.

        Raises:
            ParityError: the disk refuses it.
        """
        owner = self._owner(key)
        owner._computed.add(key)
        store = owner.store
        if store is not None:
            store.put(key, result)
        if not self.deferring:
            self._cache[key] = result
            self._bound_cache()
        elif store is None or not store.path(key).is_file():
            where = store.root if store is not None else self.checkpoint
            raise ParityError(f"{where}: the disk refused a result of PyTorch", "Free some space, or --cache DIR")
        return result

    def defer(self, key: Key, request: Request) -> None:
        """Have a result computed later.

        Raises:
            ParityError: it has been computed, and is not there any more.
        """
        if key in self._owner(key)._computed:
            raise ParityError("PyTorch's results do not fit into their cache", "Free disk space, or name fewer --case")
        self.requests[key] = request

    def take_requests(self) -> dict[Key, Request]:
        """What was deferred, to be computed now."""
        requests, self.requests = self.requests, {}
        return requests

    def forget(self) -> None:
        """Drop what is in memory."""
        self._cache.clear()

    def _owner(self, key: Key) -> Results:
        """Where a result is stored."""
        return self.tower if self.tower is not None and key[0] == VISION else self

    def _bound_cache(self) -> None:
        """Drop the results from memory that were not used for the longest time."""
        while len(self._cache) > 1 and (
            len(self._cache) > REMEMBERED_CASES
            or sum(array.nbytes for result in self._cache.values() for array in arrays_of(result).values())
            > REMEMBERED_BYTES
        ):
            self._cache.popitem(last=False)
