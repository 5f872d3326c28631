"""Standard input, output and error of a command: all three exist, and any text can be printed.

A process may be started with any of them closed; the next file it opens would take the number, and whatever prints to
"standard output" would write into that file. So closed ones become the null device. Standard library only.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their numbers


def prepare_streams() -> None:
    """Open what is closed, and print characters that the locale's encoding lacks as escapes: `\\u00e9`."""
    for number, (name, mode) in enumerate(MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: TextIO) -> None:
    """Discard what a stream that cannot be written still holds, so that nothing fails when Python exits."""
    with suppress(OSError, ValueError):  # ValueError: no file behind it, as in tests
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
