"""The store of a fleet: results by name, under one fsspec URL, shared by all workers and by several fleets.

A result is written once, whole, and never changed; a second writer leaves it as it is. Every operation retries a store
that cannot be reached, with growing pauses, for up to `patience` seconds. A marker file identifies a store, so that a
network disk that is not mounted is not mistaken for an empty store.

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

from ..errors import FleetError, errno_of, first_line
from .places import WHOLE_OBJECTS, Directory, Place, Remote

MARKER = "fleet-store.json"
FORMAT = 1
PATIENCE = 120.0  # seconds to retry an unreachable store
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between tries; each is twice the one before
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Errors that are not retried. Everything else a file system raises counts as an outage: which exceptions it raises then
# depends on the file system.
PERMANENT = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, FleetError)

Log = Callable[[str], None]
Result = TypeVar("Result")


class Unreachable(OSError):
    """The store's marker is missing."""


class Store:
    """Results under one URL; use `open_store` to get one."""

    def __init__(self, url: str, place: Place, patience: float = PATIENCE, log: Log = lambda line: None) -> None:
        self.url = url
        self.place = place
        self.patience = patience
        self.log = log

    def has(self, name: str) -> bool:
        return self._retry(partial(self._exists, name))

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            FleetError: it is not there, or the store cannot be reached.
        """

        def read() -> bytes:
            try:
                return self.place.read(name)
            except FileNotFoundError:
                self._check_marker()
                raise FleetError(f"{self.url}: {name} is missing", "Run the fleet again") from None

        return self._retry(read)

    def names(self, folder: str) -> list[str]:
        """The names directly in a folder."""

        def names() -> list[str]:
            listed = self.place.names(folder)
            if not listed:
                self._check_marker()
            return listed

        return self._retry(names)

    def put(self, name: str, data: bytes) -> bool:
        """Write one file unless it exists; returns whether it was written."""
        return self._retry_write(lambda: self.place.write(name, data, new=True))

    def replace(self, name: str, data: bytes) -> None:
        """Write one file, replacing one that exists."""
        self._retry_write(lambda: self.place.write(name, data, new=False))

    def put_tree(self, name: str, source: Path, last: str) -> bool:
        """Write a directory unless it exists; returns whether it was written.

        Args:
            last: the file that is written last: its presence means that all others are there.
        """
        return self._retry_write(lambda: self.place.write_tree(name, source, last))

    def fetch_tree(self, name: str, target: Path) -> None:
        """Copy a directory to this machine; `target` must not exist."""
        self._retry(lambda: self.place.fetch_tree(name, target))

    def local(self, name: str) -> Path | None:
        """The path of a name on this machine's disks, or None."""
        return self.place.local(name)

    def was_away(self, error: Exception) -> bool:
        """Whether an error may come from an outage of the store; if so, waits until the store can be reached again.

        Raises:
            FleetError: it cannot be reached for `patience` seconds.
        """
        root, name = self.local(""), getattr(error, "filename", None)
        inside = root is not None and isinstance(name, str | os.PathLike) and Path(name).is_relative_to(root)
        if isinstance(error, FleetError) or (not inside and self.place_answers()):
            return False
        self._retry(self._check_marker)
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
        self._check_marker()
        return False

    def _check_marker(self) -> None:
        if not self.place.exists(MARKER):
            raise Unreachable(f"{MARKER} is missing")

    def _retry_write(self, write: Callable[[], Result]) -> Result:
        def checked() -> Result:
            self._check_marker()  # else this would create a directory where a disk is to be mounted
            return write()

        return self._retry(checked)

    def _retry(self, operation: Callable[[], Result]) -> Result:
        """Run an operation, retrying while the store cannot be reached.

        Raises:
            FleetError: it could not be reached for `patience` seconds, is full, or may not be written to.
        """
        deadline, pause, logged = time.monotonic() + self.patience, FIRST_PAUSE, False
        while True:
            try:
                result = operation()
                if logged:
                    self.log(f"store: {self.url} is back")
                return result
            except Exception as error:
                if refusal := self.refusal(error):
                    raise refusal from error
                if isinstance(error, PERMANENT):
                    raise
                if time.monotonic() + pause > deadline:
                    raise FleetError(
                        f"{self.url}: cannot be reached for {self.patience:.0f} s ({first_line(error)})",
                        "Run it again when it is back: what is there is not made again",
                    ) from error
                if not logged:
                    self.log(f"store: {self.url} cannot be reached ({first_line(error)}), trying again")
                    logged = True
            time.sleep(pause * random.uniform(0.7, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def refusal(self, error: Exception) -> FleetError | None:
        """The error for a store that is full or refuses access; None for any other error."""
        number = errno_of(error)
        if isinstance(error, PermissionError) or number in REFUSED:
            return FleetError(
                f"{self.url}: may not be written to or read ({first_line(error)})", "Choose another --store"
            )
        if number in FULL:
            return FleetError(f"{self.url}: is full ({first_line(error)})", "Free some space and run it again")
        if number in IMPOSSIBLE:
            return FleetError(f"{self.url}: cannot be a store ({first_line(error)})", "Choose another --store")
        return None


def open_store(url: str, create: bool = True, patience: float = PATIENCE, log: Log = lambda line: None) -> Store:
    """The store at a fsspec URL.

    Args:
        url: a directory, or `s3://bucket/path`, `gs://…`, `hf://datasets/org/name/…`, whatever fsspec knows.
        create: create a store if there is none, and check that it can be written to.
        log: takes a line when the store becomes unreachable or reachable.

    Raises:
        FleetError: an unknown kind of URL, no store there, or no permission to write.
    """
    store = store_at(url, patience, log)
    if not create:
        if not store._retry(partial(store.place.exists, MARKER)):
            raise FleetError(f"{url}: holds no fleet's results", "Check --store, or: qwen3vl-export fleet run")
        return store
    marker = json.dumps({"format": FORMAT}).encode() + b"\n"
    if isinstance(store.place, Directory):
        try:
            store._retry(partial(store.place.root.mkdir, parents=True, exist_ok=True))
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
            raise FleetError(
                f"{url}: no directory can be made there ({first_line(error)})", "Choose another"
            ) from error
    written = store._retry(partial(store.place.write, MARKER, marker, new=True))
    written_format = json.loads(store.read(MARKER)).get("format")
    if written_format != FORMAT:
        raise FleetError(
            f"{url}: is a store of format {written_format}, this version reads {FORMAT}", "Choose another --store"
        )
    if isinstance(store.place, Directory):
        store.place.remove_abandoned()
    if not written:
        store.replace(MARKER, marker)  # the same bytes; checks the permission to write
    return store


def store_at(url: str, patience: float = PATIENCE, log: Log = lambda line: None) -> Store:
    """The store at a URL that has been opened before: its absence is an outage."""
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
