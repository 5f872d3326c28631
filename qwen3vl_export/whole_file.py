"""A file that appears whole or not at all: written under a temporary name beside its final one, then renamed.

Knows nothing about what is written.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path` with the same suffix, to be written by the caller.

    On success it replaces `path`; on any failure it is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
