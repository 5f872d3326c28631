"""A directory appears whole or not at all, and an old one survives every failure."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3vl_export import output
from qwen3vl_export.errors import BuildError
from qwen3vl_export.exporter.unfinished import resumable_directory
from qwen3vl_export.output import whole_file
from qwen3vl_export.replaceable import whole_directory

from ...fixtures.paths import ROOT
from .test_replaceable import files_below, make_artifact


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a.png"] and path.read_text() == "old"
    with whole_file(path) as partial, whole_file(path) as second:
        assert partial != second and partial.suffix == ".png" and partial.name.startswith(".")
        partial.write_text("new")
        second.write_text("newer")
        assert path.read_text() == "old"
    assert names(tmp_path) == ["a.png"] and path.read_text() == "new"  # the outer one is the last to be renamed
    with whole_file(tmp_path / "b.yaml", hidden=False) as partial:
        partial.touch()
        assert not partial.name.startswith(".")
    assert names(tmp_path) == ["a.png", "b.yaml"]


def test_success_renames_into_place(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "deep" / "out") as building:
        (building / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "new"


def test_a_full_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BuildError, match="not empty"), whole_directory(tmp_path):
        raise AssertionError("must not get here")
    assert names(tmp_path) == ["mine"]


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_directory(tmp_path / "out") as building:
        (building / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def test_force_replaces_only_on_success(tmp_path: Path) -> None:
    out = make_artifact(tmp_path / "out")
    before = files_below(tmp_path)
    with pytest.raises(ZeroDivisionError), whole_directory(out, force=True) as building:
        (building / "new").touch()
        raise ZeroDivisionError
    assert files_below(tmp_path) == before
    with whole_directory(out, force=True) as building:
        (building / "new").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["new"]


WAYS = {"whole": whole_directory, "resumable": resumable_directory}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")], ids=["Ctrl-C", "error"])
def test_what_was_there_is_put_back_when_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, way: str
) -> None:
    out = make_artifact(tmp_path / "out")
    before = files_below(tmp_path)
    rename, moved = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        moved.append(self.name)
        if len(moved) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(type(error)), WAYS[way](out, force=True) as building:
        (building / "new").touch()
    assert moved[0] == "out" and len(moved) == 3
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", [1, 2])
def test_an_interrupt_right_after_a_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, way: str
) -> None:
    out = make_artifact(tmp_path / "out")
    before = files_below(tmp_path)
    rename, moved = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        moved.append(rename(self, target))
        if len(moved) == which:
            raise KeyboardInterrupt
        return moved[-1]

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), WAYS[way](out, force=True) as building:
        (building / "new").touch()
    assert files_below(tmp_path) == (before if which == 1 else {"out/": b"", "out/new": b""})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("force", [False, True])
def test_what_came_while_writing_stays(tmp_path: Path, force: bool, way: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="not empty, and not an artifact"), WAYS[way](out, force=force) as building:
        (building / "new").touch()
        out.mkdir()
        (out / "mine").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["mine"]


@pytest.mark.parametrize("way", WAYS)
def test_an_artifact_that_came_while_writing_is_replaced_by_force_only(tmp_path: Path, way: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="replace the artifact with --force"), WAYS[way](out):
        make_artifact(out)
    before = files_below(tmp_path)
    with WAYS[way](out, force=True) as building:
        (building / "new").touch()
    assert before and names(out) == ["new"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error, raised",
    [(OSError(errno.EACCES, "Permission denied"), BuildError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["error", "Ctrl-C"],
)
def test_what_cannot_be_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException], way: str
) -> None:
    out = make_artifact(tmp_path / "out")
    remove = shutil.rmtree

    def fail(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "replaced":
            raise error
        remove(path, ignore_errors)

    monkeypatch.setattr(output.shutil, "rmtree", fail)
    with pytest.raises(raised) as refused, WAYS[way](out, force=True) as building:
        (building / "new").touch()
    left = [name for name in names(tmp_path) if name != "out"]
    told = " ".join([str(refused.value), *getattr(refused.value, "__notes__", [])])
    assert names(out) == ["new"] and len(left) == 1
    assert left[0].startswith(".out.") and f"{tmp_path / left[0] / 'replaced'}" in told and "complete" in told
    monkeypatch.undo()
    make_artifact(out)
    with WAYS[way](out, force=True) as building:  # the next one removes it
        (building / "newer").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["newer"]


def test_what_has_a_temporary_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / ".out.building-0123456789ab"
    (taken / "deep").mkdir(parents=True)
    monkeypatch.setattr(output.uuid, "uuid4", lambda: SimpleNamespace(hex="0123456789ab" * 3))
    with pytest.raises(FileExistsError), whole_directory(tmp_path / "out"):
        raise AssertionError("must not get here")
    assert (taken / "deep").is_dir()


def killed_while_replacing(out: Path, renames: int, way: str) -> None:
    """A process that is killed after so many of the two renames of a replacement."""
    script = f"""
import os, shutil, signal
from pathlib import Path
from {WAYS[way].__module__} import {WAYS[way].__name__} as directory
rename, moved = Path.rename, []
def counted(self, target):
    if len(moved) == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
    moved.append(rename(self, target))
    return moved[-1]
Path.rename = counted
remove = shutil.rmtree
shutil.rmtree = lambda path, *a, **k: os.kill(os.getpid(), 9) if path.name == "replaced" else remove(path, *a, **k)
with directory(Path({str(out)!r}), force=True) as building:
    (building / "new").touch()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_a_killed_process_left_is_removed_and_what_it_was_replacing_comes_back(
    tmp_path: Path, renames: int, way: str
) -> None:
    out = make_artifact(tmp_path / "out")
    old = names(out)
    killed_while_replacing(out, renames, way)
    assert len(names(tmp_path)) == (1 if renames == 1 else 2)
    with pytest.raises(BuildError, match="not empty"), WAYS[way](out):  # the old one is there again, or the new one
        raise AssertionError("must not get here")
    assert names(out) == (["new"] if renames == 2 else old)
    if renames == 2:
        make_artifact(out)
    with WAYS[way](out, force=True) as building:
        (building / "newer").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["newer"]


def test_a_file_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(BuildError, match="is a file"), whole_directory(tmp_path / "out", force=True):
        raise AssertionError("must not get here")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, number: int) -> None:
    with pytest.raises(BuildError, match="disk full"), whole_directory(tmp_path / "out") as building:
        (building / "half").touch()
        raise OSError(number, "No space left on device")
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "out") as building:
        (building / "half").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []
