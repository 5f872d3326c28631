"""A resumed build continues where it stopped and ends with the same bytes; what cannot be trusted is built again."""

from __future__ import annotations

import errno
import filecmp
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import BuildError, CheckpointError
from qwen3vl_export.exporter import weights
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import fused_name
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.progress import SECONDS, ProgressLines
from qwen3vl_export.exporter.unfinished import BUILDING, JOURNAL, resumable_directory, unfinished
from qwen3vl_export.exporter.weights import journal as journals
from qwen3vl_export.exporter.weights.journal import Journal
from qwen3vl_export.exporter.weights.stream import ErrorSums
from qwen3vl_export.recipe import load_recipe

KILLED = """
import os, signal, sys
from pathlib import Path
from parity_tests.fixtures.traces import shared_traces
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.exporter.weights.journal import Journal

add = Journal.add

def add_and_die(self, *arguments):
    add(self, *arguments)
    if len(self.entries) == 100:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = add_and_die
with shared_traces():
    build(load_recipe("tiny"), out=Path(sys.argv[1]), log=lambda line: None)
"""


def have_same_files(left: Path, right: Path) -> bool:
    """Whether two artifacts hold the same files with the same bytes, evidence of verification aside."""
    names = [*sorted(open_artifact(left).manifest.files), "manifest.json"]
    paths = sorted(path.relative_to(right).as_posix() for path in right.rglob("*") if path.is_file())
    matched, _, _ = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted(matched) == sorted(names) == paths


def test_a_killed_build_goes_on_to_the_same_bytes(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    with pytest.raises(BuildError, match=r"an interrupted build left .* Continue it with --resume, or begin anew"):
        build(load_recipe("tiny"), out=out, log=lambda line: None)
    streamed: list[str] = []
    stream_piece = weights.stream_piece

    def record_and_stream(checkpoint: object, name: str, *rest: object) -> ErrorSums:
        streamed.append(name)
        return stream_piece(checkpoint, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "stream_piece", record_and_stream)
    lines: list[str] = []
    build(load_recipe("tiny"), out=out, resume=True, log=lines.append)
    assert any(line.startswith("continuing an interrupted build: 100 tensors, ") for line in lines)
    tensors = open_checkpoint(str(ROOT / "recipes" / "checkpoints" / "tiny")).tensors
    written = [len({fused_name(name) or name for name in names}) for names in (streamed, tensors)]
    assert written[0] == written[1] + 1 - 100  # the token table is also the output head, transposed
    assert have_same_files(tiny_artifact, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


TOKENS = "extends: {tiny}\ngraphs: [embed_tokens]\nparity: {{held_out: false}}\n"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A recipe with one small graph."""
    recipe = tmp_path / "recipe" / "tokens.yaml"
    recipe.parent.mkdir()
    recipe.write_text(TOKENS.format(tiny=ROOT / "recipes" / "tiny.yaml"))
    return recipe


def interrupt(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Run a build that raises `error` once all weights are written."""

    def stop(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("qwen3vl_export.exporter.pipeline.check_graph", stop)
        build(load_recipe(recipe), out=out, log=lambda line: None)


def test_an_interrupt_keeps_what_is_worth_it_and_says_where(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as stopped:
        interrupt(tokens, out, monkeypatch, KeyboardInterrupt())
    assert [note.partition(" are kept in ")[2] for note in stopped.value.__notes__] == [
        f"{tmp_path}/.out.unfinished: continue with --resume"
    ]
    monkeypatch.setattr(weights, "stream_piece", lambda *_: pytest.fail("a complete tensor was written again"))
    build(load_recipe(tokens), out=out, resume=True, log=lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe"]


def test_a_full_disk_keeps_what_was_written(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"disk full, [\d,]+ bytes are kept in .*run it again with --resume"):
        interrupt(tokens, tmp_path / "out", monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert (unfinished(tmp_path / "out") / JOURNAL).is_file()


def test_our_own_error_leaves_nothing_unless_it_was_there_before(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="refused"):
        interrupt(tokens, out, monkeypatch, BuildError("refused"))
    assert not unfinished(out).exists()
    with pytest.raises(KeyboardInterrupt):
        interrupt(tokens, out, monkeypatch, KeyboardInterrupt())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        build(load_recipe(tokens), out=out, checkpoint="./nowhere", resume=True, log=lambda line: None)
    assert (unfinished(out) / JOURNAL).is_file()


def test_another_recipe_begins_anew_and_says_why(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupt(tokens, out, monkeypatch, KeyboardInterrupt())
    tokens.write_text(tokens.read_text() + "dtype: float16\n")
    lines: list[str] = []
    build(load_recipe(tokens), out=out, resume=True, log=lines.append)
    assert "an interrupted build cannot be continued (recipe changed): starting from the beginning" in lines
    fresh = build(load_recipe(tokens), out=tmp_path / "fresh", log=lambda line: None)
    assert have_same_files(fresh, out)


def open_journal(folder: Path, lines: list[str] | None = None, **dependencies: str) -> Journal:
    log = (lambda line: None) if lines is None else lines.append
    return Journal.open(folder / "journal", dependencies, folder, log)


@pytest.fixture
def two_tensors(tmp_path: Path) -> Path:
    """A journal of two tensors in one file of ten bytes."""
    (tmp_path / "data").write_bytes(bytes(10))
    journal = open_journal(tmp_path, recipe="a")
    journal.add("first", [("data", 0, 4)], {}, [])
    journal.add("second", [("data", 4, 2), ("data", 8, 2)], {"second.weight": 0.25}, [])
    return tmp_path


def test_a_journal_reads_back(two_tensors: Path) -> None:
    journal = open_journal(two_tensors, recipe="a")
    assert set(journal.entries) == {"first", "second"} and journal.entries["second"].errors == {"second.weight": 0.25}
    assert journal.bytes == 8 and journal.files == {"data"} and journal.end("data") == 10 and journal.end("other") == 0


@pytest.mark.parametrize("lost", [1, 10, 60])
def test_a_torn_tail_is_cut_back(two_tensors: Path, lost: int) -> None:
    path = two_tensors / "journal"
    text = path.read_bytes()
    os.truncate(path, len(text) - lost)
    journal = open_journal(two_tensors, recipe="a")
    assert set(journal.entries) == {"first"}
    assert text.startswith(path.read_bytes()) and path.read_bytes().endswith(b"\n")
    journal.add("second", [("data", 4, 2), ("data", 8, 2)], {"second.weight": 0.25}, [])
    assert path.read_bytes() == text


def change_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text = (folder / "journal").read_text()
    (folder / "journal").write_text(text.replace('"recipe": "a"', '"recipe": "b"'))
    return "recipe"


def restart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(journals, "boot_id", lambda: "another")
    return "boot"


def shorten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    os.truncate(folder / "data", 9)
    return "its files"


def remove(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "data").unlink()
    return "its files"


def behead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "journal").write_bytes((folder / "journal").read_bytes()[1:])
    return "boot, recipe"


@pytest.mark.parametrize("spoil", [change_recipe, restart, shorten, remove, behead])
def test_what_does_not_match_is_not_believed(
    two_tensors: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, pytest.MonkeyPatch], str]
) -> None:
    changed = spoil(two_tensors, monkeypatch)
    lines: list[str] = []
    assert open_journal(two_tensors, lines, recipe="a").entries == {}
    assert not (two_tensors / "journal").exists()
    assert lines == [f"an interrupted build cannot be continued ({changed} changed): starting from the beginning"]


def test_a_system_without_a_boot_id_flushes_every_tensor(two_tensors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "BOOT_ID_FILE", two_tensors / "nothing")
    flushed: list[int] = []
    monkeypatch.setattr(journals.os, "fsync", flushed.append)
    open_journal(two_tensors, recipe="a").add("third", [("data", 0, 1)], None, [7])
    assert flushed == [7]


def test_two_builds_of_one_directory_are_told_apart(tmp_path: Path) -> None:
    with resumable_directory(tmp_path / "out") as first:
        (first / "file").touch()
        with (
            pytest.raises(BuildError, match="another process is building there"),
            resumable_directory(tmp_path / "out", force=True),
        ):
            raise AssertionError("must not get here")
    assert (tmp_path / "out" / "file").is_file()


def leave_unfinished(out: Path, *names: str) -> Path:
    """What a build that was killed leaves."""
    with pytest.raises(OSError, match="killed"), resumable_directory(out) as building:
        journal = building.with_name(JOURNAL)
        journal.touch()
        for name in names:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            (building / name).touch()
        raise OSError("killed")
    return unfinished(out)


def test_force_removes_what_was_left(tmp_path: Path) -> None:
    left = leave_unfinished(tmp_path / "out", "deep/old")
    with resumable_directory(tmp_path / "out", force=True) as building:
        assert list(building.iterdir()) == []
    assert not left.exists()


def test_what_has_no_journal_is_begun_anew(tmp_path: Path) -> None:
    left = leave_unfinished(tmp_path / "out", "old")
    (left / JOURNAL).unlink()
    with resumable_directory(tmp_path / "out", resume=True) as building:
        assert list(building.iterdir()) == []
    assert not left.exists()


@pytest.mark.parametrize("options", [{}, {"force": True}, {"resume": True}], ids=["plain", "force", "resume"])
@pytest.mark.parametrize("name", ["thesis.txt", f"{BUILDING}/thesis.txt", JOURNAL])
def test_somebody_elses_directory_of_that_name_stays(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    mine = unfinished(tmp_path / "out") / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(BuildError, match="not an unfinished build"), resumable_directory(tmp_path / "out", **options):
        raise AssertionError("must not get here")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_beside_an_unfinished_build_stays(tmp_path: Path, force: bool) -> None:
    left = leave_unfinished(tmp_path / "out")
    (left / "notes.txt").write_text("mine")
    with resumable_directory(tmp_path / "out", force=force, resume=not force) as building:
        (building / "new").touch()
    assert [path.name for path in left.iterdir()] == ["notes.txt"]


def test_an_unfinished_build_that_is_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave_unfinished(tmp_path / "out", "old")
    for inputs, directory in (([left / BUILDING], tmp_path), ([], left / BUILDING)):
        monkeypatch.chdir(directory)
        with (
            pytest.raises(BuildError, match=r"holds .*(which is read|the current directory)"),
            resumable_directory(tmp_path / "out", force=True, inputs=inputs),
        ):
            raise AssertionError("must not get here")
        assert (left / BUILDING / "old").is_file()


def test_a_place_that_was_taken_meanwhile_costs_no_written_weight(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="not empty") as refused, resumable_directory(out) as building:
        building.with_name(JOURNAL).touch()
        (building / "new").touch()
        out.mkdir()
        (out / "mine").touch()
    assert (unfinished(out) / BUILDING / "new").is_file() and (out / "mine").is_file()
    assert "continue with --resume" in refused.value.__notes__[0]


def test_a_build_replaces_an_artifact_but_nothing_added_to_it(tokens: Path, tmp_path: Path) -> None:
    recipe, out = load_recipe(tokens), tmp_path / "out"
    build(recipe, out=out, log=lambda line: None)
    with pytest.raises(BuildError, match="or replace the artifact with --force"):
        build(recipe, out=out, log=lambda line: None)
    (out / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"holds onnx/notes\.txt"):
        build(recipe, out=out, force=True, log=lambda line: None)
    assert (out / "onnx" / "notes.txt").read_text() == "mine"
    (out / "onnx" / "notes.txt").unlink()
    inode = out.stat().st_ino
    build(recipe, out=out, force=True, log=lambda line: None)
    assert open_artifact(out) and out.stat().st_ino != inode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe"]


def test_progress_is_a_line_now_and_then() -> None:
    now, lines = [0.0], []
    progress = ProgressLines(total=4 << 30, done=1 << 30, log=lines.append, clock=lambda: now[0])
    for _ in range(3):
        now[0] += SECONDS * 0.6
        progress.advance(1 << 28)
    assert lines == ["weights: 1.5 GB of 4.0 GB (38%), 28.4 MB/s, 1 min 30 s left"]
