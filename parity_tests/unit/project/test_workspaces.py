"""Temporary directories: gone at the end, and removed by the next run where a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.output import NOTE, NOTE_TEXT, is_workspace, lock_directory, remove_abandoned, workspace

PREFIX = ".out.building-"
NAME = f"{PREFIX}0123456789ab"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def abandoned(parent: Path, name: str = NAME) -> Path:
    """A workspace that no process holds."""
    directory = parent / name
    (directory / "deep" / "deeper").mkdir(parents=True)
    (directory / "deep" / "file").touch()
    (directory / NOTE).write_text(NOTE_TEXT, "utf-8")
    return directory


@pytest.mark.parametrize("error", [None, ZeroDivisionError(), KeyboardInterrupt()], ids=str)
def test_a_workspace_is_gone_however_it_ends(tmp_path: Path, error: BaseException | None) -> None:
    def use() -> None:
        with workspace(tmp_path, PREFIX) as directory:
            (directory / "deep").mkdir()
            (directory / "deep" / "file").touch()
            (directory / "link").symlink_to(tmp_path)
            assert directory.stat().st_mode & 0o077 == 0
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(type(error)):
            use()
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from qwen3vl_export.output import workspace\n"
        "with workspace(Path(sys.argv[1]), sys.argv[2]) as directory:\n"
        "    (directory / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path), PREFIX], env=environment)
    assert killed.returncode == -signal.SIGKILL and len(names(tmp_path)) == 1
    remove_abandoned(tmp_path, ".other.building-")
    assert len(names(tmp_path)) == 1
    remove_abandoned(tmp_path, PREFIX)
    assert names(tmp_path) == []


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    with workspace(tmp_path, PREFIX) as directory:
        remove_abandoned(tmp_path, PREFIX)
        assert is_workspace(directory)
    descriptor = lock_directory(abandoned(tmp_path))
    assert descriptor is not None
    remove_abandoned(tmp_path, PREFIX)
    assert names(tmp_path) == [NAME]
    os.close(descriptor)
    remove_abandoned(tmp_path, PREFIX)
    assert names(tmp_path) == []


def test_what_is_a_strangers_stays(tmp_path: Path) -> None:
    """Another name, no note, another note, a file, and a link to what would be removed if it had the name."""
    elsewhere = abandoned(tmp_path / "elsewhere", "mine")
    for name in (f"{PREFIX}notes", f"{PREFIX}0123456789abc", "0123456789ab", f"x{NAME}", NAME.upper()):
        abandoned(tmp_path, name)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "thesis.txt").write_text("mine")
    other = abandoned(tmp_path, f"{PREFIX}00000000000a")
    (other / NOTE).write_text("How to use my project", "utf-8")
    binary = abandoned(tmp_path, f"{PREFIX}00000000000b")
    (binary / NOTE).write_bytes(b"\xff")
    (tmp_path / f"{PREFIX}00000000000c").write_text("mine")
    (tmp_path / f"{PREFIX}00000000000d").symlink_to(elsewhere)
    before = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    remove_abandoned(tmp_path, PREFIX)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == before


def test_a_link_inside_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").touch()
    (abandoned(tmp_path) / "link").symlink_to(mine)
    remove_abandoned(tmp_path, PREFIX)
    assert names(tmp_path) == ["mine"] and names(mine) == ["file"]


def test_where_nothing_can_be_locked_workspaces_work_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with workspace(tmp_path, PREFIX) as directory:
        assert directory.is_dir()
    remove_abandoned(tmp_path, PREFIX)
    assert names(tmp_path) == [NAME]


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    remove_abandoned(tmp_path / "nowhere", PREFIX)
