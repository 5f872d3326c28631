"""Errors of libraries, cut to one line."""

from __future__ import annotations

import pytest

from qwen3vl_export.errors import first_line


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
