"""The memory and disk that this machine, or the container this process runs in, can still give.

Reads what Linux says in /proc and in the files of its control groups, old (v1) and new (v2). Knows nothing about
verifications.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MEMINFO, STATUS, MEMBERSHIP = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Names of a group's files and of the caches in memory.stat, by version: v2 first.
LIMIT, USED = ("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes")
CACHES = (("active_file", "inactive_file"), ("total_active_file", "total_inactive_file"))
RESERVE, RESERVED_SHARE = 1 << 30, 4  # bytes left to other programs, at most the fourth part of what is free


def memory_left(budget: int | None) -> int:
    """Bytes that this process may still take.

    Args:
        budget: all that it may take; None is what is free, less a reserve.
    """
    free = free_memory()
    return free - min(RESERVE, free // RESERVED_SHARE) if budget is None else min(budget - resident_memory(), free)


def free_memory() -> int:
    """Bytes that this process can take before the system or its control group runs out; half of the machine's where
    the system does not say."""
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([read_kilobytes(MEMINFO, "MemAvailable") or half, *groups_left()]))


def resident_memory() -> int:
    """Bytes that this process takes; 0 where the system does not say."""
    return read_kilobytes(STATUS, "VmRSS")


def free_disk(directory: Path) -> int:
    """Bytes free on the disk of a directory, which need not exist yet."""
    path = directory.absolute()
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free


def groups_left() -> Iterator[int]:
    """Bytes left in each control group with a limit that this process is in, from the innermost to the root.

    Pages of files count as free: the kernel drops them before it kills a process.
    """
    for version, group in memory_groups():
        limit, used = (read_number(group / names[version]) for names in (LIMIT, USED))
        if limit is not None and used is not None:
            yield limit - used + sum(read_statistics(group / "memory.stat").get(name, 0) for name in CACHES[version])


def memory_groups() -> Iterator[tuple[int, Path]]:
    """The directories of this process's control groups for memory, each with the index of its version in `LIMIT`.

    A container sees its own group as the root, whatever its path is called outside.
    """
    lines = MEMBERSHIP.read_text("utf-8").splitlines() if MEMBERSHIP.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        version, root = (1, CGROUPS / "memory") if controllers else (0, CGROUPS)
        for part in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            yield version, root / part


def read_kilobytes(path: Path, field: str) -> int:
    """A number of kilobytes of a file in /proc, in bytes; 0 without it."""
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values[field].split()[0]) * 1024 if field in values else 0


def read_number(path: Path) -> int | None:
    """The number a file of a control group holds; None without the file, or if it says `max`."""
    text = path.read_text("ascii").strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def read_statistics(path: Path) -> dict[str, int]:
    """The lines `name number` of a file of a control group."""
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
