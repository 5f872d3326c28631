"""Refuses files of a checkpoint that are there in name only, or that no JSON reader takes.

A clone without `git lfs` has pointers in place of large files, a copied cache has links that lead nowhere, and some
editors put a byte order mark before JSON. Knows first bytes; nothing about what the files mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import CheckpointError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def refuse_placeholders(paths: Iterable[Path]) -> None:
    """Refuse the first of these paths whose content is not there; paths where nothing is are passed over.

    Raises:
        CheckpointError: a link to nothing, a Git LFS pointer, JSON with a byte order mark, or an unreadable file.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path}: a link to nothing", "Copy the file itself, or download the checkpoint again"
            )
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                head = file.read(len(LFS_POINTER))
        except OSError as error:
            raise CheckpointError(f"{path}: {(error.strerror or str(error)).lower()}", "Make it readable") from None
        if head == LFS_POINTER:
            raise CheckpointError(f"{path}: a Git LFS pointer in place of the file", "Run git lfs pull there")
        if path.suffix == ".json" and head.startswith(BYTE_ORDER_MARKS):
            raise CheckpointError(
                f"{path}: starts with a byte order mark, which no JSON reader takes", "Save it as UTF-8 without one"
            )
