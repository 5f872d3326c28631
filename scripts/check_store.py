"""Checks that a store at some URL keeps what fleets rely on: results whole or absent, the first one kept, trees as they
were sent.

    python scripts/check_store.py s3://bucket/somewhere

Run it once for a kind of store that is new to you. It writes a few megabytes under the URL and leaves them there. Ends
with 1 if a promise is broken; a file system without conditional put may break the one about writers at once.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from qwen3vl_export.errors import Qwen3VLExportError
from qwen3vl_export.fleet.store import Store, open_store

WRITERS = 16
LARGE = 12 << 20  # bytes: several parts of an upload
LAST = "manifest.json"


def first_is_kept(store: Store, name: str) -> bool:
    written = store.put(f"{name}/a.json", b"first"), store.put(f"{name}/a.json", b"second")
    return written == (True, False) and store.read(f"{name}/a.json") == b"first"


def derived_is_replaced(store: Store, name: str) -> bool:
    store.replace(f"{name}/b.json", b"old")
    store.replace(f"{name}/b.json", b"new")
    return store.read(f"{name}/b.json") == b"new"


def what_is_missing_is_missing(store: Store, name: str) -> bool:
    return not store.has(f"{name}/c.json") and store.names(f"{name}/nothing") == []


def one_of_many_writers_wins(store: Store, name: str) -> bool:
    won: list[int] = []

    def write(index: int) -> None:
        if store.put(f"{name}/race.json", bytes([index]) * 200_000):
            won.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(won) == 1 and store.read(f"{name}/race.json") == bytes(won) * 200_000


def a_tree_arrives_as_it_was_sent(store: Store, name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        tree, back = Path(folder) / "tree", Path(folder) / "back"
        (tree / "onnx").mkdir(parents=True)
        (tree / "onnx" / "a.onnx_data").write_bytes(os.urandom(LARGE))
        (tree / LAST).write_text("{}", "utf-8")
        before = store.has(f"{name}/tree/{LAST}")
        written = store.put_tree(f"{name}/tree", tree, LAST), store.put_tree(f"{name}/tree", tree, LAST)
        store.fetch_tree(f"{name}/tree", back)
        listed = store.names(name)
        same = dict(digests(tree)) == dict(digests(back))
    return not before and written == (True, False) and same and "tree" in listed and store.has(f"{name}/tree/{LAST}")


def digests(root: Path) -> Iterator[tuple[str, str]]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


CHECKS: tuple[Callable[[Store, str], bool], ...] = (
    first_is_kept,
    derived_is_replaced,
    what_is_missing_is_missing,
    one_of_many_writers_wins,
    a_tree_arrives_as_it_was_sent,
)


def main(url: Annotated[str, typer.Argument(help="Where a store may be made.")]) -> None:
    """Check a store."""
    try:
        store, name = open_store(url, log=print), f"check-{uuid.uuid4().hex[:8]}"
        kept = [check(store, name) for check in CHECKS]
    except Qwen3VLExportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    for check, held in zip(CHECKS, kept, strict=True):
        typer.echo(f"{'ok    ' if held else 'BROKEN'} {check.__name__.replace('_', ' ')}")
    raise typer.Exit(not all(kept))


if __name__ == "__main__":
    typer.run(main)
