"""Errors of libraries, cut to one line."""

from __future__ import annotations

import errno
import shutil

import pytest

from qwen3vl_export.errors import LONGEST_TEXT, Qwen3VLExportError, errno_of, first_line, os_reason


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


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_names_with_line_breaks_stay_on_the_line(line_break: str) -> None:
    error = Qwen3VLExportError(f"a{line_break}b: no such file", f"Is it c{line_break}d?")
    assert len(str(error).splitlines()) == 1
    assert "a\\" in str(error) and "c\\" in str(error)


def test_what_an_error_quotes_may_be_of_any_length() -> None:
    error = Qwen3VLExportError(f"recipe.yaml: {'x' * 10**6}: unknown key", "Remove it")
    assert len(error.what) <= LONGEST_TEXT
    assert error.what.startswith("recipe.yaml: x") and str(error).endswith("x: unknown key. Remove it")
