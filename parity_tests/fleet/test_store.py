"""The store: whole results or none, first come first kept, and what an outage or a full disk does."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from qwen3vl_export.errors import FleetError
from qwen3vl_export.fleet import places
from qwen3vl_export.fleet import store as module
from qwen3vl_export.fleet.places import INCOMING
from qwen3vl_export.fleet.store import MARKER, Store, open_store

NOBODY = 65534


@pytest.fixture(params=["directory", "objects", "renaming"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One of each kind of place: a directory, an object store, and another file system that can only rename."""
    if request.param == "directory":
        yield open_store(str(tmp_path / "store"))
        return
    url = f"memory://{tmp_path.name}"
    opened = open_store(url)
    opened.place.whole_objects = request.param == "objects"  # type: ignore[attr-defined]
    yield opened
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "onnx").mkdir(parents=True)
    (root / "onnx" / "a.onnx").write_bytes(b"a" * 1000)
    (root / "manifest.json").write_text("{}")
    return root


def test_what_is_first_stays(store: Store) -> None:
    assert store.put("parts/a.json", b"first")
    assert not store.put("parts/a.json", b"second")
    assert store.read("parts/a.json") == b"first"
    store.replace("parts/a.json", b"third")
    assert store.read("parts/a.json") == b"third"
    assert store.names("parts") == ["a.json"]
    assert store.names("nothing") == []


def test_a_tree_is_there_when_its_last_file_is(store: Store, tree: Path, tmp_path: Path) -> None:
    assert not store.has("artifacts/a/manifest.json")
    assert store.put_tree("artifacts/a", tree, "manifest.json")
    assert not store.put_tree("artifacts/a", tree, "manifest.json")
    assert store.has("artifacts/a/manifest.json")
    store.fetch_tree("artifacts/a", tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy"): path.read_bytes() for path in (tmp_path / "copy").rglob("*.*")}
    assert copied == {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*.*")}
    assert store.names("artifacts") == ["a"]
    if (path := store.local(INCOMING)) is not None:
        assert not list(path.iterdir())


def test_a_tree_whose_writer_died_is_not_there_and_can_be_written(store: Store, tree: Path) -> None:
    if (path := store.local("artifacts/a")) is not None:
        (path.parents[1] / INCOMING / "dead").mkdir(parents=True)
        (path.parents[1] / INCOMING / "dead" / "manifest.json").write_text("{")
    else:
        store.place.fs.pipe_file(f"{store.place.root}/artifacts/a/onnx/a.onnx", b"a")  # type: ignore[attr-defined]
    assert not store.has("artifacts/a/manifest.json")
    assert store.put_tree("artifacts/a", tree, "manifest.json")
    assert store.read("artifacts/a/onnx/a.onnx") == b"a" * 1000


def test_many_writers_leave_one_whole_result(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    stores = [open_store(url) for _ in range(8)]
    won: list[int] = []

    def write(index: int) -> None:
        if stores[index].put("parts/a.json", bytes([index]) * 100_000):
            won.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert stores[0].read("parts/a.json") == bytes([won[0]]) * 100_000


def test_an_outage_is_survived_and_told(tmp_path: Path) -> None:
    """The directory vanishes, as a network disk does that is unmounted."""
    lines: list[str] = []
    root, away = tmp_path / "store", tmp_path / "away"
    store = open_store(str(root), log=lines.append)
    store.put("parts/a.json", b"a")
    root.rename(away)
    back = threading.Timer(1.0, away.rename, (root,))
    back.start()
    start = time.monotonic()
    assert store.read("parts/a.json") == b"a"
    assert time.monotonic() - start > 0.9
    root.rename(away)
    threading.Timer(1.0, away.rename, (root,)).start()
    assert store.put("parts/b.json", b"b")
    assert (root / "parts" / "b.json").read_bytes() == b"b"
    assert ["cannot be reached" in line for line in lines] == [True, False, True, False]


def test_an_outage_that_lasts_ends_in_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), patience=0.5)
    (tmp_path / "store").rename(tmp_path / "away")
    for operation in (store.has, store.read, store.names, lambda name: store.put(name, b"")):
        with pytest.raises(FleetError, match=r"cannot be reached for 0 s .* is back: what is there is not made again"):
            operation("parts/a.json")
    assert not (tmp_path / "store").exists()  # nothing was written where a disk is to be mounted


@pytest.mark.parametrize("error", [ConnectionError("refused"), TimeoutError("slow"), RuntimeError("503")])
def test_every_kind_of_outage_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    store = open_store(str(tmp_path / "store"))
    failing = iter([error, error])
    exists = store.place.exists

    def flaky(name: str) -> bool:
        if (raised := next(failing, None)) is not None:
            raise raised
        return exists(name)

    monkeypatch.setattr(store.place, "exists", flaky)
    assert store.has(MARKER)


def test_a_store_without_write_permission_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    open_store(str(closed))
    for path in (closed, closed / INCOMING):
        path.mkdir(exist_ok=True)
        path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents[:2]:
            parent.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        with pytest.raises(FleetError, match=r"closed: may not be written to or read \(.*Choose another --store"):
            open_store(str(closed))
        with pytest.raises(FleetError, match="may not be written to"):
            open_store(str(closed / "inside"))
    finally:
        if root:
            os.seteuid(0)
        for path in (closed, closed / INCOMING):
            path.chmod(0o755)


@pytest.mark.parametrize(
    "url, message",
    [
        ("nonsense://x", "nonsense://x: Protocol not known"),
        ("abfs://container/x", "fsspec needs a package for abfs"),
    ],
)
def test_a_url_nobody_knows_is_refused(url: str, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        open_store(url)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match="no directory can be made there"):
        open_store(str(tmp_path / "file"))


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    open_store(str(tmp_path))
    (tmp_path / MARKER).write_text('{"format": 9}')
    with pytest.raises(FleetError, match="is a store of format 9, this version reads 1"):
        open_store(str(tmp_path))


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="holds no fleet's results"):
        open_store(str(tmp_path), create=False)
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_were_writing_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and trees of our names; what changed since, and what is a stranger's, stays."""
    store = open_store(str(tmp_path))
    incoming = tmp_path / INCOMING
    incoming.mkdir(exist_ok=True)
    (incoming / "notes.txt").write_text("mine")
    (incoming / f"{0:032x}").write_text("half")
    (incoming / f"{1:032x}" / "onnx").mkdir(parents=True)
    (incoming / f"{1:032x}" / "onnx" / "half").touch()
    open_store(str(tmp_path))
    assert len(list(incoming.iterdir())) == 3  # somebody may be writing them
    later = time.time() + places.ABANDONED_SECONDS + 1
    monkeypatch.setattr(places.time, "time", lambda: later)
    open_store(str(tmp_path), create=False)
    assert len(list(incoming.iterdir())) == 3  # only looks
    open_store(str(tmp_path))
    assert [path.name for path in incoming.iterdir()] == ["notes.txt"]
    assert store.has(MARKER)


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP])
def test_a_place_that_can_never_be_a_store_is_refused_at_once(number: int, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    def fail() -> None:
        raise OSError(number, "never")

    with pytest.raises(FleetError, match="cannot be a store"):
        store._retry(fail)


def test_a_full_disk_that_copying_a_tree_reports_is_no_outage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))

    def fail() -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])

    with pytest.raises(FleetError, match="is full"):
        store._retry(fail)
