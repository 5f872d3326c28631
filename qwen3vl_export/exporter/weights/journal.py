"""The journal of a build: which tensors lie complete in their files, so that an interrupted build can go on.

One line of JSON each, appended after the last byte of a tensor was written; the first line says what all bytes are
made from. The others are believed only while every word of that is the same; otherwise the build begins anew. A line
that was cut off in the middle is cut away. What is not in the journal is written again, whatever lies in the files.

Data that the kernel has taken survives a killed process but not a crash of the machine: the first line names the boot,
and where a system has no name for it every tensor is flushed to the disk before its line.

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

BOOT = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = ""

Parts = Sequence[tuple[str, int, int]]  # (file, offset, bytes) of each array of a tensor


@dataclass(frozen=True)
class Entry:
    """One complete tensor: where its arrays lie, and the relative error of its quantized values."""

    parts: Parts
    error: float | None


@dataclass
class Journal:
    """Complete tensors, by the hash of all that decides their bytes and places.

    Attributes:
        path: the file; it exists once a tensor is complete.
        made_of: what the bytes are made from: name -> hash or identity.
        entries: hash -> entry.
    """

    path: Path
    made_of: Mapping[str, str]
    entries: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(cls, path: Path, made_of: Mapping[str, str], data: Path, tell: Callable[[str], None]) -> Journal:
        """The journal at `path`, or an empty one if it is of another build.

        Args:
            data: directory of the files that the entries name.
            tell: takes one line: how much is continued, or why nothing is.
        """
        journal = cls(path, {**made_of, "boot": boot()})
        if not path.is_file():
            return journal
        lines, whole = _complete_lines(path.read_bytes())
        found = lines[0] if lines else {}
        changed = sorted(name for name in {*journal.made_of, *found} if journal.made_of.get(name) != found.get(name))
        journal.entries = {line["made_of"]: Entry([(*p,) for p in line["parts"]], line["error"]) for line in lines[1:]}
        if not changed and not journal.holds(data):
            changed = ["its files"]
        if changed:
            what = f"an interrupted build cannot be continued ({', '.join(changed)} changed)"
            tell(f"{what}: starting from the beginning")
            path.unlink()
            journal.entries = {}
            return journal
        os.truncate(path, whole)
        tell(f"continuing an interrupted build: {len(journal.entries)} tensors, {journal.bytes:,} bytes are written")
        return journal

    @property
    def bytes(self) -> int:
        """Bytes of all complete tensors."""
        return sum(length for entry in self.entries.values() for _, _, length in entry.parts)

    @property
    def files(self) -> set[str]:
        """Names of the files that hold complete tensors."""
        return {name for entry in self.entries.values() for name, _, _ in entry.parts}

    def end(self, file: str) -> int:
        """The offset behind the last complete array of a file; 0 if it has none."""
        return max((o + n for entry in self.entries.values() for name, o, n in entry.parts if name == file), default=0)

    def holds(self, data: Path) -> bool:
        """Whether every file in `data` is long enough for what lies in it."""
        return all((data / n).is_file() and (data / n).stat().st_size >= self.end(n) for n in self.files)

    def add(self, made_of: str, parts: Parts, error: float | None, descriptors: Sequence[int]) -> None:
        """Note a tensor whose bytes are all written; any thread may call.

        Args:
            descriptors: the files they were written to.
        """
        if self.made_of["boot"] == UNKNOWN:
            for descriptor in descriptors:
                os.fsync(descriptor)
        with self._lock:
            lines: list[Mapping[str, Any]] = [] if self.path.is_file() else [self.made_of]
            lines.append({"made_of": made_of, "parts": parts, "error": error})
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self.entries[made_of] = Entry(parts, error)


def hash_of(what: object) -> str:
    """Hex sha256 of an object's `repr`; it must say all that counts."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def boot() -> str:
    """What names this run of the machine; `UNKNOWN` where the system has no such name."""
    with contextlib.suppress(OSError):
        return BOOT.read_text("ascii").strip()
    return UNKNOWN


def _complete_lines(text: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines that parse, up to the first that does not, and how many bytes they take."""
    lines: list[dict[str, Any]] = []
    whole = 0
    for line in text.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        lines.append(value)
        whole += len(line)
    return lines, whole
