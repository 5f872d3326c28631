"""Where a store is: the few operations it needs, on a local directory and on any other fsspec file system.

Whatever is written appears whole under its name or not at all. Locally and on file systems that rename, it is written
under a temporary name first; object stores show an object only when all of it has arrived, and refuse a second one
(conditional put). A tree of files exists once its last file does. Nothing is retried and errors are the file system's:
`store.py` handles them.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

INCOMING = ".incoming"  # files and trees that are being written
PARTIAL = re.compile("[0-9a-f]{32}")  # the names there
ABANDONED_SECONDS = 24 * 3600.0  # without a change, after which nobody is writing it
WHOLE_OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "hf", "memory")  # protocols of object stores


class Place(Protocol):
    """The operations; names are relative and use `/`."""

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...

    def names(self, folder: str) -> list[str]:
        """The names directly in a folder; empty if there is no folder."""
        ...

    def write(self, name: str, data: bytes, new: bool) -> bool:
        """Write one file; returns whether it was written: with `new`, an existing file is left as it is."""
        ...

    def write_tree(self, name: str, source: Path, last: str) -> bool:
        """Write a directory whose file `last` is written last; returns False if it exists already."""
        ...

    def fetch_tree(self, name: str, target: Path) -> None: ...

    def local(self, name: str) -> Path | None:
        """The path of a name on this machine's disks, or None."""
        ...


class Directory:
    """A directory of this machine or of a mounted network disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        try:
            (self.root / name).stat()
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except FileNotFoundError:
            return []

    def write(self, name: str, data: bytes, new: bool) -> bool:
        final = self.root / name
        final.parent.mkdir(parents=True, exist_ok=True)
        with self._incoming() as partial:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not new:
                partial.replace(final)
                return True
            try:
                os.link(partial, final)  # fails where rename would replace
            except FileExistsError:
                return False
        return True

    def write_tree(self, name: str, source: Path, last: str) -> bool:
        final = self.root / name
        final.parent.mkdir(parents=True, exist_ok=True)
        with self._incoming() as partial:
            shutil.copytree(source, partial)
            for path in partial.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            try:
                partial.rename(final)
            except OSError:
                if not self.exists(f"{name}/{last}"):
                    raise
                return False
        return True

    def fetch_tree(self, name: str, target: Path) -> None:
        shutil.copytree(self.root / name, target)

    def local(self, name: str) -> Path | None:
        return self.root / name

    def remove_abandoned(self) -> None:
        """Remove what killed processes were writing: a lock would not hold on every network disk, a day does."""
        folder = self.root / INCOMING
        with suppress(OSError):
            for partial in list(folder.iterdir()):
                paths = [partial, *partial.rglob("*")]
                changed = max(path.lstat().st_ctime for path in paths)  # copies keep the other time
                if PARTIAL.fullmatch(partial.name) and time.time() - changed > ABANDONED_SECONDS:
                    remove(partial)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A temporary name; whatever has it at the end is removed."""
        folder = self.root / INCOMING
        folder.mkdir(exist_ok=True)
        partial = folder / uuid.uuid4().hex
        try:
            yield partial
        finally:
            remove(partial)


def remove(path: Path) -> None:
    """Remove a file or directory, as far as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class Remote:
    """A path of a fsspec file system.

    Args:
        fs: the file system, without a cache of listings, because other processes write too.
        whole_objects: a file that is put appears only when all of it is there.
    """

    def __init__(self, fs: Any, root: str, whole_objects: bool) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self.whole_objects = whole_objects

    def exists(self, name: str) -> bool:
        try:
            self.fs.info(self._path(name))  # `fs.exists` mistakes an unreachable store for an empty one
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self._path(name))
        return data

    def names(self, folder: str) -> list[str]:
        try:
            paths = self.fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in paths} - {folder.rpartition("/")[2], ""})

    def write(self, name: str, data: bytes, new: bool) -> bool:
        final = self._path(name)
        if self.whole_objects:
            try:
                self.fs.pipe_file(final, data, mode="create" if new else "overwrite")
            except FileExistsError:
                return False
            return True
        if new and self.exists(name):
            return False
        self._make_parent(final)
        partial = self._partial()
        self.fs.pipe_file(partial, data)
        self.fs.mv(partial, final)
        return True

    def write_tree(self, name: str, source: Path, last: str) -> bool:
        if self.exists(f"{name}/{last}"):
            return False
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            inside = path.relative_to(source).as_posix()
            if inside != last:
                self._put(path, f"{name}/{inside}")
        return self.write(f"{name}/{last}", (source / last).read_bytes(), new=True)

    def fetch_tree(self, name: str, target: Path) -> None:
        self.fs.get(self._path(name) + "/", f"{target}/", recursive=True)

    def local(self, name: str) -> Path | None:
        return None

    def _put(self, path: Path, name: str) -> None:
        """Write one file of any size; equal results are equal bytes, so an existing file may be replaced."""
        final = self._path(name)
        if self.whole_objects:
            self.fs.put_file(str(path), final)
            return
        self._make_parent(final)
        partial = self._partial()
        self.fs.put_file(str(path), partial)
        self.fs.mv(partial, final)

    def _make_parent(self, path: str) -> None:
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _partial(self) -> str:
        partial = self._path(f"{INCOMING}/{uuid.uuid4().hex}")
        self._make_parent(partial)
        return partial

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"
