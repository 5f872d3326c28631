"""The store of a fleet: results by name, under one fsspec URL, shared by all workers and by several fleets.

A result is written once, whole, and never changed; who comes second leaves it as it is. A store that cannot be
reached is waited for, with growing pauses, up to `patience` seconds: each operation survives an outage on its own. A
store is known by its marker file, so that a network disk that is not mounted is not taken for an empty store.

Knows bytes and directories; nothing about what the results mean.
"""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..errors import FleetError, first_line
from .places import WHOLE_OBJECTS, Directory, Place, Remote

MARKER = "fleet-store.json"
FORMAT = 1
PATIENCE = 120.0  # seconds an unreachable store is waited for
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between tries; each is twice the one before
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# What waiting does not help against. Everything else a file system raises is taken for an outage: which exceptions that
# are depends on the file system.
LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, FleetError)

Log = Callable[[str], None]
Result = TypeVar("Result")


class Unreachable(OSError):
    """The store's marker is not where it was."""


class Store:
    """Results under one URL; `open_store` is the way to get one."""

    def __init__(self, url: str, place: Place, patience: float = PATIENCE, log: Log = lambda line: None) -> None:
        self.url = url
        self.place = place
        self.patience = patience
        self.log = log

    def has(self, name: str) -> bool:
        return self._patiently(partial(self._exists, name))

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            FleetError: it is not there, or the store cannot be reached.
        """

        def read() -> bytes:
            try:
                return self.place.read(name)
            except FileNotFoundError:
                self._reach()
                raise FleetError(f"{self.url}: {name} is missing", "Run the fleet again") from None

        return self._patiently(read)

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder."""

        def names() -> list[str]:
            found = self.place.names(folder)
            if not found:
                self._reach()
            return found

        return self._patiently(names)

    def put(self, name: str, data: bytes) -> bool:
        """Write one file unless it is there; returns whether it was written."""
        return self._writing(lambda: self.place.write(name, data, new=True))

    def replace(self, name: str, data: bytes) -> None:
        """Write one file, or put it in the place of the one that is there."""
        self._writing(lambda: self.place.write(name, data, new=False))

    def put_tree(self, name: str, source: Path, last: str) -> bool:
        """Write a directory unless it is there.

        Args:
            last: the file whose presence says that all others are there.
        """
        return self._writing(lambda: self.place.write_tree(name, source, last))

    def fetch_tree(self, name: str, target: Path) -> None:
        """Copy a directory to this machine; `target` must not exist."""
        self._patiently(lambda: self.place.fetch_tree(name, target))

    def local(self, name: str) -> Path | None:
        """Where a name lies on this machine's disks, or None."""
        return self.place.local(name)

    def was_away(self, error: Exception) -> bool:
        """Whether work that failed may have failed because the store was away; waits until it is back.

        Raises:
            FleetError: it does not come back.
        """
        root, name = self.local(""), getattr(error, "filename", None)
        inside = root is not None and isinstance(name, str | os.PathLike) and Path(name).is_relative_to(root)
        if isinstance(error, FleetError) or (not inside and self.place_answers()):
            return False
        self._patiently(self._reach)
        return True

    def place_answers(self) -> bool:
        """Whether the store can be reached right now."""
        try:
            return self.place.exists(MARKER)
        except Exception:  # which exception an outage is depends on the file system
            return False

    def _exists(self, name: str) -> bool:
        if self.place.exists(name):
            return True
        self._reach()
        return False

    def _reach(self) -> None:
        if not self.place.exists(MARKER):
            raise Unreachable(f"{MARKER} is not there")

    def _writing(self, write: Callable[[], Result]) -> Result:
        def checked() -> Result:
            self._reach()  # or a directory would be made where a disk is to be mounted
            return write()

        return self._patiently(checked)

    def _patiently(self, operation: Callable[[], Result]) -> Result:
        """The operation, again and again while the store cannot be reached.

        Raises:
            FleetError: it could not be reached for `patience` seconds, is full, or may not be written to.
        """
        given_up, pause, told = time.monotonic() + self.patience, FIRST_PAUSE, False
        while True:
            try:
                found = operation()
                if told:
                    self.log(f"store: {self.url} is back")
                return found
            except Exception as error:
                if refusal := self.refusal(error):
                    raise refusal from error
                if isinstance(error, LASTING):
                    raise
                if time.monotonic() + pause > given_up:
                    raise FleetError(
                        f"{self.url}: cannot be reached for {self.patience:.0f} s ({first_line(error)})",
                        "Run it again when it is back: what is there is not made again",
                    ) from error
                if not told:
                    self.log(f"store: {self.url} cannot be reached ({first_line(error)}), trying again")
                    told = True
            time.sleep(pause * random.uniform(0.7, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def refusal(self, error: Exception) -> FleetError | None:
        """What a full or forbidden store is called; None for everything else."""
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, PermissionError) or number in REFUSED:
            return FleetError(
                f"{self.url}: may not be written to or read ({first_line(error)})", "Choose another --store"
            )
        if number in FULL:
            return FleetError(f"{self.url}: is full ({first_line(error)})", "Free some space and run it again")
        return None


def open_store(url: str, make: bool = True, patience: float = PATIENCE, log: Log = lambda line: None) -> Store:
    """The store at a fsspec URL.

    Args:
        url: a directory, or `s3://bucket/path`, `gs://…`, `hf://datasets/org/name/…`, whatever fsspec knows.
        make: begin one where there is none, and make sure that it can be written to.
        log: takes a line when the store goes away or comes back.

    Raises:
        FleetError: no such kind of URL, nothing there, or it may not be written to.
    """
    store = store_at(url, patience, log)
    if not make:
        if not store._patiently(partial(store.place.exists, MARKER)):
            raise FleetError(f"{url}: holds no fleet's results", "Check --store, or: qwen3vl-export fleet run")
        return store
    marker = json.dumps({"format": FORMAT}).encode() + b"\n"
    if isinstance(store.place, Directory):
        try:
            store._patiently(partial(store.place.root.mkdir, parents=True, exist_ok=True))
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
            raise FleetError(
                f"{url}: no directory can be made there ({first_line(error)})", "Choose another"
            ) from error
    written = store._patiently(partial(store.place.write, MARKER, marker, new=True))
    found = json.loads(store.read(MARKER)).get("format")
    if found != FORMAT:
        raise FleetError(f"{url}: is a store of format {found}, this version reads {FORMAT}", "Choose another --store")
    if not written:
        store.replace(MARKER, marker)  # the same bytes: one that is there says nothing about permissions
    return store


def store_at(url: str, patience: float = PATIENCE, log: Log = lambda line: None) -> Store:
    """The store that somebody opened at a URL: what is not there now is waited for."""
    return Store(url, place_at(url), patience, log)


def place_at(url: str) -> Place:
    """The place a URL names.

    Raises:
        FleetError: fsspec does not know the protocol, or lacks the package for it.
    """
    import fsspec

    protocol = url.partition("://")[0] if "://" in url else "file"
    if protocol in ("file", "local"):
        return Directory(Path(url.partition("://")[2] or url).expanduser().absolute())
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise FleetError(
            f"{url}: fsspec needs a package for {protocol}:// ({first_line(error)})", "Install it"
        ) from error
    except (ValueError, TypeError) as error:
        raise FleetError(f"{url}: {first_line(error)}", "Give a directory, or a URL that fsspec knows") from error
    return Remote(fs, root, protocol in WHOLE_OBJECTS)
