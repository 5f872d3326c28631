"""Caches the sha256 of files, so that an artifact's gigabytes are hashed only once.

A cached hash is used only while the file is unchanged: same path, device, inode, size, and times of last change to the
nanosecond. The change time (ctime) is set by the kernel, so a file that is rewritten and given its old modification
time is hashed again. The hash of a file changed within the last two seconds is not cached: the file system's clock may
be too coarse to show another change. The cache is in the user's cache directory, never in an artifact; if that is not
writable, files are hashed again each time.

Knows files; nothing about artifacts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import platformdirs

from .json_form import Matching
from .output import whole_file

FILE = "sha256.json"
DIRECTORY_VARIABLE = "QWEN3VL_EXPORT_CACHE"
MAX_ENTRIES = 2000
SETTLED_NS = 2_000_000_000
BLOCK = 8 << 20
SOURCES = ("**/*.py", "**/*.j2")  # the default of `source_digest`

Digest = Annotated[str, Matching("^[0-9a-f]{64}$")]  # a sha256 in JSON
Identity = list[int]  # device, inode, size, mtime_ns, ctime_ns


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in large blocks: with other threads busy, each read waits for Python's global lock."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


class HashCache:
    """Hashes of files, stored in one JSON file.

    Args:
        path: of the JSON file; by default in `cache_directory()`.
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
            return {}  # absent or corrupt: everything is hashed again

    def sha256(self, path: Path) -> str:
        """Hex sha256 of a file, from the cache or computed.

        Raises:
            OSError: the file cannot be read.
        """
        name, before = str(path.resolve()), identity(path)
        if (entry := self._entries.get(name)) is not None and entry[0] == before:
            return entry[1]
        started = time.time_ns()
        digest = sha256_file(path)
        settled = started - max(before[3:]) > SETTLED_NS
        if settled and identity(path) == before:
            self._entries.pop(name, None)
            self._entries[name] = (before, digest)  # the newest entry is last
            self._changed = True
        return digest

    def save(self) -> None:
        """Write new hashes to the file; no error if it cannot be written."""
        if not self._changed:
            return
        newest = dict(list(self._entries.items())[-MAX_ENTRIES:])
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as partial:
                partial.write_text(json.dumps(newest), "utf-8")
            self._changed = False


def identity(path: Path) -> Identity:
    """What changes whenever the file does."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def cache_directory() -> Path:
    """`$QWEN3VL_EXPORT_CACHE`, else `qwen3vl-export` in the user's cache directory."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return Path(directory) if directory else platformdirs.user_cache_path("qwen3vl-export")


def source_digest(package: Path, patterns: Sequence[str] = SOURCES) -> str:
    """Hex sha256 over the names and contents of the files under a directory that match one of the patterns."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
