"""Turns errors that a user can cause into one red line on standard error and an exit code.

Any other exception is a bug and keeps its traceback. Knows nothing about the commands.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ..console import one_line, print_error
from ..errors import Qwen3VLExportError

USAGE_ERROR: Any = typer.BadParameter.__base__  # click's UsageError, from where this typer has it
INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT
EXTRAS = {
    **dict.fromkeys(
        ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxsim", "safetensors", "google"), "export"
    ),
    **dict.fromkeys(("dask", "distributed", "fsspec"), "fleet"),
    "pytest": "test",
}
OS_ERRORS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "file too large for this file system or limit",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "read-only file system",
}


class Commands(TyperGroup):
    """The command group, which turns errors a user can cause into one line and an exit code."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with neutralized_usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            with neutralized_usage():
                return super().invoke(ctx)
        except Qwen3VLExportError as error:
            print_error(". ".join([str(error), *notes(error)]))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            print_error("; ".join(["interrupted", *notes(error)]))
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            print_error(
                f"{ctx.invoked_subcommand} needs {error.name}. Install it: pip install 'qwen3vl-export[{extra}]'"
            )
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in OS_ERRORS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            next = advice(error, str(ctx.invoked_subcommand))
            print_error(". ".join([f"{where}{OS_ERRORS[error.errno]}", next, *notes(error)]))
            raise typer.Exit(2) from None


@contextmanager
def neutralized_usage() -> Iterator[None]:
    """Neutralize a wrong command line that typer is about to print: a shell's `*` puts strange file names there."""
    try:
        yield
    except USAGE_ERROR as error:
        error.message = one_line(error.message)
        raise


def advice(error: OSError, command: str) -> str:
    """What to do about an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run it again"
    return "Choose --out" if command in ("build", "fetch") else "Make it writable, or work on a copy"


def notes(error: BaseException) -> list[str]:
    """Notes added to an error while it propagated, such as where an interrupted build is stored."""
    return list(getattr(error, "__notes__", ()))
