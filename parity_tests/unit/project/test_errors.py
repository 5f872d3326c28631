"""Errors of libraries, cut to one line."""

from __future__ import annotations

import errno
import shutil

import pytest

from qwen3vl_export.errors import errno_of, first_line, os_reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such key"), "no such key"),
        (OSError("\n  first\nsecond"), "first"),
        (ValueError(""), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_or_the_class(error: BaseException, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (shutil.Error([("a", "b", str(OSError(errno.ENOSPC, "No space left on device", "b")))]), errno.ENOSPC),
        (RuntimeError("data processing error: No space left on device (os error 28)"), 28),
        (RuntimeError("28"), None),
        (OSError("timed out"), None),
    ],
)
def test_the_number_of_an_error_wherever_it_is_told(error: BaseException, number: int | None) -> None:
    assert errno_of(error) == number


def test_why_the_system_refused() -> None:
    assert os_reason(OSError(errno.ENAMETOOLONG, "File name too long", "x")) == "File name too long"
    assert os_reason(ValueError("embedded null byte")) == "embedded null byte"
