"""PyTorch's results on disk, so that each is computed once: the store behind `Reference`.

A result is named by the hash of everything it depends on: the inputs, the checkpoint's files, the versions of torch and
transformers, and the code that computed it. A change in any of them gives another name, so nothing is ever invalidated.
Files appear whole or not at all, and are read back with a checksum; a damaged one counts as absent.

Knows arrays and files; nothing about models.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qwen3vl_export.hash_cache import cache_directory
from qwen3vl_export.output import whole_file

# Bytes; the least recently used results are deleted first. Logits of a published vocabulary take 0.6 MB a token.
BUDGET = 8 * 1024**3
SUFFIX = ".npz"
HEX = "[0-9a-f]"
NAMES = f"{2 * HEX}/{64 * HEX}{SUFFIX}"  # of the files that this module writes

Key = tuple[str | int | bool, ...]
Result = TypeVar("Result")


def default_directory() -> Path:
    """`reference` under `$QWEN3VL_EXPORT_CACHE`, else under `qwen3vl-export` in the user's cache directory."""
    return cache_directory() / "reference"


def recorded_files(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of each file of a checkpoint and of its adapters, by name; with adapters also the version of what merges.

    Args:
        checkpoint: what the manifest records of it.
    """
    files = dict(checkpoint["files"])
    if checkpoint.get("adapters"):
        with contextlib.suppress(PackageNotFoundError):
            files["peft"] = version("peft")
    for number, adapter in enumerate(checkpoint.get("adapters", [])):
        files |= {f"adapter {number}/{name}": digest for name, digest in adapter["files"].items()}
    return files


def scope_of(checkpoint_files: Mapping[str, str], device: str = "cpu") -> str:
    """A hex digest of what all results of one reference depend on.

    Args:
        checkpoint_files: sha256 of each file of the checkpoint, by name.
        device: the type of the device that computes.
    """
    # Every module beside this one, so that none that computes is forgotten.
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256()
    for part in (*code, repr(sorted(checkpoint_files.items())).encode(), device.encode()):
        digest.update(hashlib.sha256(part).digest())
    for package in ("torch", "transformers", "numpy"):
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()


class Store:
    """Results of one reference: arrays, or dataclasses of arrays.

    Args:
        root: directory; created by the first write.
        scope: what all results depend on, see `scope_of`.
        budget: bytes the directory may hold, including results of other scopes.
    """

    def __init__(self, root: Path, scope: str, budget: int = BUDGET) -> None:
        self.root = root
        self.scope = scope
        self.budget = budget
        self._bytes: int | None = None  # in the directory, once counted

    def path(self, key: Key) -> Path:
        name = hashlib.sha256(f"{self.scope} {key!r}".encode()).hexdigest()
        return self.root / name[:2] / f"{name}{SUFFIX}"

    def get(self, key: Key, kind: type[Result]) -> Result | None:
        """The result stored under `key`, or None.

        Args:
            kind: the type of the result: `np.ndarray` or a dataclass of arrays.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            os.utime(path)  # for the order of use
            result: Result = kind(**values) if is_dataclass(kind) else values["value"]
            return result
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None  # damaged: counts as absent and will be overwritten

    def put(self, key: Key, value: Any) -> None:
        """Store a result. If the disk refuses it, it is computed again when it is needed."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                with partial.open("wb") as file:
                    np.savez(file, **arrays_of(value))
                size = partial.stat().st_size
            self._make_room(size)

    def clear(self) -> None:
        """Delete every result."""
        for path in self.root.glob(NAMES):
            path.unlink(missing_ok=True)
        self._bytes = 0

    def _make_room(self, added: int) -> None:
        """Delete the least recently used results until the directory is within its budget."""
        if self._bytes is not None and self._bytes + added <= self.budget:
            self._bytes += added
            return
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.root.glob(NAMES))
        self._bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._bytes <= self.budget:
                break
            path.unlink(missing_ok=True)
            self._bytes -= size


def arrays_of(value: Any) -> dict[str, Any]:
    """The arrays of a result, by name."""
    return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else {"value": value}
