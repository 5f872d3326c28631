"""The journal of a build: which tensors are complete in their files, so that an interrupted build can be continued.

One line of JSON for each tensor, appended after its last byte was written; the first line records everything that the
bytes depend on. If any of that has changed, the other lines are ignored and the build starts over. An incomplete last
line is cut off. What the journal does not list is written again, whatever the files contain.

Data handed to the kernel survives a killed process but not a crash of the machine: the first line records the boot id,
and where a system has none every tensor is flushed to disk before its line is written.

Knows names, offsets and hashes; nothing about what tensors hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN_BOOT = ""

FileRange = tuple[str, int, int]  # file, offset, bytes


@dataclass(frozen=True)
class JournalEntry:
    """One complete tensor: where its arrays are stored, and the relative errors of quantized parameters."""

    ranges: Sequence[FileRange]
    errors: Mapping[str, float]


@dataclass
class Journal:
    """Complete tensors, by a hash of everything that decides their bytes and offsets.

    Attributes:
        path: the file; it exists once a tensor is complete.
        dependencies: what all bytes depend on: name -> hash or identity.
        entries: hash -> entry.
    """

    path: Path
    dependencies: Mapping[str, str]
    entries: dict[str, JournalEntry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, path: Path, dependencies: Mapping[str, str], directory: Path, log: Callable[[str], None]) -> Journal:
        """The journal at `path`, or an empty one if it belongs to another build.

        Args:
            directory: where the files that the entries name are stored.
            log: takes one line: how much is continued, or why nothing is.
        """
        journal = cls(path, {**dependencies, "boot": boot_id()})
        if not path.is_file():
            return journal
        lines, length = _complete_lines(path.read_bytes())
        header, new = lines[0] if lines else {}, journal.dependencies
        changed = sorted(name for name in {*new, *header} if new.get(name) != header.get(name))
        journal.entries = {
            line["made_of"]: JournalEntry([(*part,) for part in line["parts"]], line["errors"]) for line in lines[1:]
        }
        if not changed and not journal.fits(directory):
            changed = ["its files"]
        if changed:
            problem = f"an interrupted build cannot be continued ({', '.join(changed)} changed)"
            log(f"{problem}: starting from the beginning")
            path.unlink()
            journal.entries = {}
            return journal
        os.truncate(path, length)
        log(f"continuing an interrupted build: {len(journal.entries)} tensors, {journal.bytes:,} bytes are written")
        return journal

    @property
    def bytes(self) -> int:
        """Bytes of all complete tensors."""
        return sum(length for entry in self.entries.values() for _, _, length in entry.ranges)

    @property
    def files(self) -> set[str]:
        """Names of the files that hold complete tensors."""
        return {name for entry in self.entries.values() for name, _, _ in entry.ranges}

    def end(self, file: str) -> int:
        """The offset behind the last complete array of a file; 0 if it has none."""
        ranges = (file_range for entry in self.entries.values() for file_range in entry.ranges)
        return max((offset + length for name, offset, length in ranges if name == file), default=0)

    def fits(self, directory: Path) -> bool:
        """Whether every file in `directory` is long enough for the arrays recorded in it."""
        paths = {name: directory / name for name in self.files}
        return all(path.is_file() and path.stat().st_size >= self.end(name) for name, path in paths.items())

    def add(
        self, digest: str, ranges: Sequence[FileRange], errors: Mapping[str, float], descriptors: Sequence[int]
    ) -> None:
        """Record a tensor whose bytes are all written; any thread may call.

        Args:
            digest: hash of everything that decides its bytes and offsets.
            errors: by parameter, of what is quantized.
            descriptors: the files it was written to.
        """
        if self.dependencies["boot"] == UNKNOWN_BOOT:
            for descriptor in descriptors:
                os.fsync(descriptor)
        with self._lock:
            lines: list[Mapping[str, Any]] = [] if self.path.is_file() else [self.dependencies]
            lines.append({"made_of": digest, "parts": ranges, "errors": errors})
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self.entries[digest] = JournalEntry(ranges, errors)


def hash_of(value: object) -> str:
    """Hex sha256 of a value's `repr`, which must show everything that matters."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def boot_id() -> str:
    """The id of the machine's current boot; `UNKNOWN_BOOT` where the system has none."""
    with contextlib.suppress(OSError):
        return BOOT_ID_FILE.read_text("ascii").strip()
    return UNKNOWN_BOOT


def _complete_lines(text: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines before the first that is incomplete or does not parse, and their length in bytes."""
    lines: list[dict[str, Any]] = []
    length = 0
    for line in text.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        lines.append(value)
        length += len(line)
    return lines, length
