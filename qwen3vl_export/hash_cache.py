"""The sha256 of files hashed before, so that loading an artifact reads its gigabytes for that only once.

A hash is believed while the file is the very one that was hashed: same path, device, inode, size, and times of last
change to the nanosecond. The change time (ctime) is the kernel's, so a file written to and given its old modification
time is hashed again. A file changed within the last two seconds is not remembered: its clock may tick too coarsely to
show another change. The store lies in the user's cache directory, never in an artifact; if that cannot be written, it
costs only time.

Knows files; nothing about artifacts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import platformdirs

FILE = "sha256.json"
DIRECTORY_VARIABLE = "QWEN3VL_EXPORT_CACHE"
MAX_ENTRIES = 2000
SETTLED_NS = 2_000_000_000
BLOCK = 8 << 20
SOURCES = ("**/*.py", "**/*.j2")  # of a package, as `source_digest` reads them

Identity = list[int]  # device, inode, size, mtime_ns, ctime_ns


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in large blocks: beside a busy thread, each one waits for Python's lock."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


class HashCache:
    """Hashes of files, read from and written to one JSON file.

    Args:
        path: that file; in `cache_directory` unless given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = cache_directory() / FILE if path is None else path
        self._entries = self._read()
        self._changed = False

    def _read(self) -> dict[str, tuple[Identity, str]]:
        try:
            values = json.loads(self.path.read_text("utf-8"))
            return {str(name): ([int(n) for n in identity], str(sha256)) for name, (identity, sha256) in values.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # absent or spoilt: everything is hashed again

    def sha256(self, path: Path) -> str:
        """Hex sha256 of a file, remembered or computed.

        Raises:
            OSError: the file cannot be read.
        """
        name, before = str(path.resolve()), identity(path)
        if (known := self._entries.get(name)) is not None and known[0] == before:
            return known[1]
        started = time.time_ns()
        digest = sha256_file(path)
        settled = started - max(before[3:]) > SETTLED_NS
        if settled and identity(path) == before:
            self._entries.pop(name, None)
            self._entries[name] = (before, digest)  # the newest is last
            self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt, whole or not at all; a place that cannot be written is no error."""
        if not self._changed:
            return
        newest = dict(list(self._entries.items())[-MAX_ENTRIES:])
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=FILE)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(newest, file)
                os.replace(name, self.path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            self._changed = False


def identity(path: Path) -> Identity:
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def cache_directory() -> Path:
    """`$QWEN3VL_EXPORT_CACHE`, else `qwen3vl-export` in the user's cache directory."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    return Path(given) if given else platformdirs.user_cache_path("qwen3vl-export")


def source_digest(package: Path, patterns: Sequence[str] = SOURCES) -> str:
    """sha256 over the names and bytes of the files under a directory that match one of the patterns."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
