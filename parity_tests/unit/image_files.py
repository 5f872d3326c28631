"""Image files that Pillow would open and this project does not, and a program that records that it was run."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path

import PIL.Image

GHOSTSCRIPT = """\
#!/bin/sh
touch {ran}
exit 0
"""


def encoded(format: str) -> bytes:
    """A small picture as Pillow writes it in one of its formats: in colours, or in what the format can hold.

    Raises:
        OSError: Pillow cannot write it without another library.
    """
    for mode in ("RGB", "P", "1"):
        with suppress(OSError, ValueError):
            return written(format, mode)
    raise OSError(format)


def written(format: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow is giving up some formats
        PIL.Image.new("RGB", (40, 30), (200, 30, 30)).convert(mode).save(buffer, format)
    return buffer.getvalue()


def writable(format: str) -> bool:
    try:
        return bool(encoded(format))
    except OSError:
        return False


EPS = encoded("EPS")


def fake_ghostscript(directory: Path) -> Path:
    """A `gs` in a directory; returns the file that is there once it has run."""
    ran, program = directory / "ran", directory / "gs"
    program.write_text(GHOSTSCRIPT.format(ran=ran))
    program.chmod(0o755)
    return ran
