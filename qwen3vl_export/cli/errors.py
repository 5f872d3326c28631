"""Ends every command in at most one red line on standard error and a documented exit code.

Foreseen are errors of the user (`Qwen3VLExportError`), of the machine (`OSError`, `MemoryError`), Ctrl-C, a closed pipe
and missing extras; `crash` takes the rest. Knows nothing about the commands.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from typer.core import TyperGroup

from ..console import one_line, print_error, print_lines
from ..errors import InputError, Qwen3VLExportError, errno_of
from .crash import CRASHED, debugging, report_crash, trace_of
from .streams import silence

USAGE_ERROR: Any = typer.BadParameter.__base__  # click's UsageError, from where this typer has it
INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT
PIPE_CLOSED = 141  # what a shell reports for a program whose reader is gone, as in `| head`: 128 + SIGPIPE
FAILED = 2
EXTRAS = {
    **dict.fromkeys(
        ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxsim", "safetensors", "google"), "export"
    ),
    **dict.fromkeys(("dask", "distributed", "fsspec"), "fleet"),
    "pytest": "test",
}
SPACE = "Free some space and run it again"
WRITABLE = "Make it writable, or work on a copy"
PATH = "Check the path"
# What is wrong, and what to do; an empty advice depends on the command.
OS_ERRORS = {
    errno.ENOSPC: ("disk full", SPACE),
    errno.EDQUOT: ("disk quota used up", SPACE),
    errno.EFBIG: ("file too large for this file system or limit", ""),
    errno.EACCES: ("permission denied", ""),
    errno.EPERM: ("permission denied", ""),
    errno.EROFS: ("read-only file system", ""),
    errno.ENOENT: ("no such file or directory", PATH),
    errno.ENOTDIR: ("a part of this path is not a directory", PATH),
    errno.EISDIR: ("is a directory", PATH),
    errno.ELOOP: ("its links form a circle", PATH),
    errno.ENAMETOOLONG: ("name too long", "Use a shorter one"),
    errno.EMFILE: ("too many open files", "Raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many open files", "Close other programs"),
    errno.EIO: ("the disk failed", "Check it, or use another"),
    errno.ESTALE: ("the network file system is gone", "Mount it again"),
    errno.EAGAIN: ("no more threads or processes can be started", "Close other programs, or pass fewer --threads"),
    errno.ENOMEM: ("out of memory", "Close other programs, or use smaller inputs"),
}


class Commands(TyperGroup):
    """The command group, which ends whatever a command raises in one line and an exit code."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with ended_in_one_line(lambda: ""), neutralized_usage():  # prints --help and --version, too
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with ended_in_one_line(lambda: str(ctx.invoked_subcommand)), neutralized_usage():
            check_working_directory()
            return super().invoke(ctx)


@contextmanager
def neutralized_usage() -> Iterator[None]:
    """Neutralize a wrong command line that typer is about to print: a shell's `*` puts strange file names there."""
    try:
        yield
    except USAGE_ERROR as error:
        error.message = one_line(error.message)
        raise


@contextmanager
def ended_in_one_line(command: Callable[[], str]) -> Iterator[None]:
    """Print what is raised inside as one line and exit; `command` is the name of the one that runs."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # what cannot be written is reported here, not when Python exits
    except BaseException as error:
        if is_exit(error) and not is_closed_pipe(error):
            raise
        code, line = ending(error, command())
        if isinstance(error, OSError) or is_closed_pipe(error):
            silence(sys.stdout)
        with suppress(OSError):  # standard error is closed or full, too
            if debugging() and code != INTERRUPTED:
                print_lines(trace_of(error))
            if line:
                print_error(line)
        raise typer.Exit(code) from None


def is_exit(error: BaseException) -> bool:
    """Whether an exception is typer's own, or ends the process on purpose."""
    typers = isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code")
    return isinstance(error, SystemExit) or (typers and not isinstance(error, Qwen3VLExportError))


def ending(error: BaseException, command: str) -> tuple[int, str]:
    """The exit code for an error, and the line to print; no line for a closed pipe."""
    notes = getattr(error, "__notes__", ())  # such as where an interrupted build is stored
    if was_interrupted(error):
        return INTERRUPTED, "; ".join(["interrupted", *notes])
    if is_closed_pipe(error):
        return PIPE_CLOSED, ""
    code, line = described(error, command) or (CRASHED, "")
    return code, ". ".join([line or report_crash(error), *notes])


def is_closed_pipe(error: BaseException) -> bool:
    """Whether nobody reads the output any more; rich exits with 1 then."""
    return isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: extension modules that it interrupts raise an ImportError instead."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def described(error: BaseException, command: str) -> tuple[int, str] | None:
    """The exit code and line of a foreseen error; None for any other."""
    if isinstance(error, Qwen3VLExportError):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        need = f"{command} needs {error.name}. Install it: pip install 'qwen3vl-export[{extra}]'"
        return (FAILED, need) if extra is not None else None
    if isinstance(error, MemoryError):
        size = f" ({error})" if str(error) else ""
        return FAILED, f"out of memory{size}. Close other programs, or use smaller pictures, batches or precisions"
    if isinstance(error, UnicodeError):
        return FAILED, f"text that is not UTF-8 ({error}). Check the encoding of the arguments, files and input"
    if isinstance(error, OSError) and (number := errno_of(error)) in OS_ERRORS:
        what, advice = OS_ERRORS[number]
        where = f"{error.filename}: " if error.filename else ""
        return FAILED, f"{where}{what}. {advice or ('Choose --out' if command in ('build', 'fetch') else WRITABLE)}"
    return None


def check_working_directory() -> None:
    """Refuse to start where libraries fail in ways of their own.

    Raises:
        InputError: the current directory has been deleted.
    """
    try:
        os.getcwd()
    except OSError:
        raise InputError("the current directory has been deleted", "Change into another: cd") from None
