"""Accidents that no command causes: one line and the documented exit code, whatever closed, filled up or went away."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity_tests.fixtures.commands import CommandResult, assert_one_line, end, invoke, start
from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.cli import crash
from qwen3vl_export.cli.crash import CRASHED
from qwen3vl_export.cli.errors import ended_in_one_line, ending

PIPE_CLOSED = 141


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logs are written."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("QWEN3VL_DEBUG", "0")
    return tmp_path / "state" / "qwen3vl-export" / "log"


def raise_in_a_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> CommandResult:
    """`recipes check`, with an error in it."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr("qwen3vl_export.recipe.load_recipe", fail)
    return invoke("build", "tiny")


# What nobody foresaw.


def deep() -> BaseException:
    def recurse() -> None:
        recurse()

    with pytest.raises(RecursionError) as caught:
        recurse()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("by\nzero"), KeyError("x"), RuntimeError("\ud800 \x1b"), OSError("no number"), deep()],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_one_line_and_a_log(monkeypatch: pytest.MonkeyPatch, logs: Path, error: BaseException) -> None:
    result = raise_in_a_command(monkeypatch, error)
    (log,) = logs.iterdir()
    assert_one_line(result, f"error: unforeseen {type(error).__name__} (", CRASHED)
    assert f"Please report it with {log}" in result.stderr
    text = log.read_text("utf-8")
    assert "Traceback (most recent call last)" in text and type(error).__name__ in text
    assert text.startswith("qwen3vl-export ") and log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, logs: Path, how: str) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("qwen3vl_export.recipe.load_recipe", fail)
    monkeypatch.setenv("QWEN3VL_DEBUG", "1" if how == "environment" else "")
    result = invoke(*["--debug"] * (how == "option"), "build", "tiny")
    assert result.exit_code == CRASHED and not logs.exists()
    assert "Traceback" in result.stderr and "in fail" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: unforeseen ZeroDivisionError")


def test_debugging_shows_where_a_foreseen_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_DEBUG", "1")
    result = invoke("build", "tinny")
    assert result.exit_code == 2 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: tinny: no recipe of that name")


@pytest.mark.parametrize("place", ["full", "no home", "nowhere", "no platformdirs"])
def test_a_log_that_cannot_be_written_is_written_elsewhere_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logs: Path, place: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(crash.tempfile, "tempdir", str(temporary))
    if place == "no home":
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.chdir(tmp_path)
    elif place == "no platformdirs":
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    else:
        monkeypatch.setattr(os, "open", no_space)
        monkeypatch.setattr(crash, "log_directories", lambda: [temporary] if place == "full" else [])
    line = crash.report_crash(ZeroDivisionError())
    assert line.startswith("unforeseen ZeroDivisionError")
    written = list(temporary.iterdir())
    assert len(written) == (place in ("no home", "no platformdirs"))
    assert (str(written[0]) in line) if written else ("no log could be written" in line)
    assert not (tmp_path / "~").exists()


def no_space(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


# What was foreseen.


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "error: out of memory. Close other programs, or use smaller pictures"),
        (MemoryError("3.9 GiB"), "error: out of memory (3.9 GiB). Close"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "x: name too long. Use a shorter one"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "error: a: too many open files. Raise the limit"),
        (OSError(errno.EIO, "Input/output error"), "error: the disk failed. Check it"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "error: a/b: no such file or directory. Check"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads or processes can be"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "error: disk full. Free some space"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "error: text that is not UTF-8 ("),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"), "error: text that is not UTF-8 ("),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_accident_of_the_machine_is_one_line(
    monkeypatch: pytest.MonkeyPatch, logs: Path, error: BaseException, expected: str
) -> None:
    assert_one_line(raise_in_a_command(monkeypatch, error), expected)
    assert not logs.exists()


def test_an_import_that_ctrl_c_broke_is_an_interrupt(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    """As numpy's extension modules do."""
    broken = ImportError("numpy.core.multiarray failed to import")
    broken.__context__ = KeyboardInterrupt()
    assert_one_line(raise_in_a_command(monkeypatch, broken), "error: interrupted", 130)
    assert not logs.exists()


def test_causes_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert ending(first, "build")[0] == CRASHED


GONE = "import os, runpy; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); \
runpy.run_module('qwen3vl_export', run_name='__main__')"


@pytest.mark.parametrize(
    "arguments", [["build", "tiny"], ["verify", "tiny"], ["run", "tiny", "--prompt", "x"]], ids=str
)
def test_a_deleted_working_directory_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", GONE, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    said = "error: the current directory has been deleted. Change into another: cd"
    assert_one_line(CommandResult(done.returncode, done.stdout, done.stderr), said)


# Standard input, output and error.


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_are_the_null_device(closed: tuple[int, ...], tmp_path: Path) -> None:
    """And a file that the command writes does not get the number of one: nothing else is written into it."""
    out = tmp_path / "schema.json"
    done = end(start("recipes", "schema", "--out", str(out), preexec_fn=closing(*closed)))
    assert done.exit_code == 0, done
    assert out.read_text("utf-8").rstrip().endswith("}")
    assert done.stderr == ""


def test_a_question_that_is_not_there_is_one_line() -> None:
    assert_one_line(invoke("run", "artifact", "--prompt", "-", typed=" \n"), "error: standard input holds no question")


def test_a_mistake_with_standard_error_closed_has_its_exit_code() -> None:
    assert end(start("build", "tinny", preexec_fn=closing(1, 2))) == CommandResult(2, "", "")


@pytest.mark.parametrize("arguments", [["recipes", "schema"], ["--help"], ["recipes", "list", "--help"]], ids=str)
def test_a_pipe_that_nobody_reads_ends_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qwen3vl_export", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "qwen3vl_export", "recipes", "schema"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert_one_line(CommandResult(done.returncode, "", done.stderr), "error: disk full. Free some space")


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["C", "ASCII"]
)
def test_accents_in_any_locale(locale: dict[str, str], tmp_path: Path) -> None:
    """In paths that are read and named in errors, and in names that are not text at all."""
    recipe = tmp_path / "zo\u00e9 \u732b.yaml"
    recipe.write_text(f"extends: {ROOT}/recipes/tiny.yaml\nname: zoe\n", "utf-8")
    done = end(start("recipes", "check", str(recipe), env=locale, errors="backslashreplace"))
    assert done.exit_code == 0, done
    missing = end(start("build", f"{tmp_path}/caf\u00e9.yaml", env=locale, errors="backslashreplace"))
    assert_one_line(missing, "no such recipe")
    bytes_name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.yaml")
    assert_one_line(end(start("build", bytes_name, env=locale, errors="backslashreplace")), "no such recipe")


# Ctrl-C in the first second.


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = start("--version", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert_one_line(end(process), "error: interrupted", 130)


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path: Path, logs: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ImportError('broken installation')")
    done = end(start("--version", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}))
    assert_one_line(done, "error: unforeseen ImportError (broken installation)", CRASHED)
    assert len(list(logs.iterdir())) == 1


# Names that are too long, threads that are too many.


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", LONG),
        ("build", f"{LONG}.yaml"),
        ("build", "tiny", "--checkpoint", LONG),
        ("verify", LONG),
        ("run", LONG, "--prompt", "x"),
        ("chat", LONG),
        ("inspect", LONG),
        ("inspect", f"{LONG}.onnx"),
        ("publish", LONG, "--to", "out"),
        ("fetch", LONG),
        ("verify-artifact", LONG),
        ("recipes", "show", LONG),
        ("recipes", "check", f"{LONG}.yaml"),
        ("recipes", "schema", "--out", LONG),
        ("fleet", "status", "tiny", "--store", LONG),
        ("fleet", "run", "tiny", "--store", LONG),
    ],
    ids=lambda arguments: " ".join(argument.replace(LONG, "X") for argument in arguments),
)
def test_a_name_that_is_too_long_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(invoke(*arguments), "error: ")
    assert not logs.exists() and not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("code", [0, 1, 2, 7])
def test_exit_codes_of_commands_pass(code: int) -> None:
    with pytest.raises(SystemExit) as ended, ended_in_one_line(lambda: "verify"):
        raise SystemExit(code)
    assert ended.value.code == code
