"""A directory appears whole or not at all, and an old one survives every failure."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from qwen3vl_export.errors import BuildError
from qwen3vl_export.output import whole_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


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
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_directory(out, force=True) as building:
        (building / "new").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and names(out) == ["old"]
    with whole_directory(out, force=True) as building:
        (building / "new").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["new"]


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
