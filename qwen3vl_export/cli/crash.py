"""The last net: an error that nobody foresaw becomes one line that asks for a report, and a log with its traceback.

Must work where little else does: with a full disk, without a home directory, while importing. So every step of it may
fail, and it needs nothing but the standard library and platformdirs.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .. import __version__
from ..errors import first_line

CRASHED = 70  # the exit code, EX_SOFTWARE of sysexits.h
DEBUG_VARIABLE = "QWEN3VL_DEBUG"


def debugging() -> bool:
    """Whether tracebacks are shown: `$QWEN3VL_DEBUG` is set to something other than 0."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def report_crash(error: BaseException) -> str:
    """What to print about an error: what it is, and where its traceback is."""
    what = f"unforeseen {type(error).__name__} ({first_line(error)}), a bug of qwen3vl-export or a library."
    if debugging():
        return f"{what} Please report it with the traceback above"
    log = write_log(trace_of(error))
    if log is None:
        return f"{what} Please report it with its traceback, which {DEBUG_VARIABLE}=1 shows: no log could be written"
    return f"{what} Please report it with {log}, or see the traceback with {DEBUG_VARIABLE}=1"


def trace_of(error: BaseException) -> str:
    """The traceback of an error."""
    return "".join(traceback.format_exception(error))


def print_without_console(text: str) -> None:
    """Print lines to standard error where importing the console may be what failed; ASCII, the rest as escapes."""
    lines = [line.encode("unicode_escape") + b"\n" for line in text.splitlines()]
    with suppress(OSError):
        os.write(2, b"".join(lines))


def write_log(trace: str) -> Path | None:
    """A new file with the traceback, the command and the versions; None if it can be written nowhere."""
    text = (
        f"qwen3vl-export {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n{trace}"
    )
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for directory in log_directories():
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        try:
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except OSError:  # the disk is full
            with suppress(OSError):
                path.unlink()
    return None


def log_directories() -> Iterator[Path]:
    """Where a log may be written, first choice first."""
    with suppress(Exception):  # no home directory, or platformdirs is what cannot be imported
        import platformdirs

        path = platformdirs.user_log_path("qwen3vl-export")
        if path.is_absolute():  # `~` stays as it is where there is no home directory
            yield path
    with suppress(OSError):  # no temporary directory can be written
        yield Path(tempfile.gettempdir())
