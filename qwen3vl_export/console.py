"""Terminal output of the commands: results, errors, tables and number formats.

On a terminal, colours and the terminal's width; in a pipe or CI, plain wide lines. Knows nothing about what it prints.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPE_WIDTH = 200  # columns in a pipe, so that a table row stays on one line


def console() -> Console:
    """A console for results, on the current standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(text: str) -> None:
    """Print one line of plain text, never wrapped or interpreted as markup."""
    console().print(text, markup=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print one red line to standard error."""
    line = " ".join(text.split())
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] [red]{escape(line)}[/]", soft_wrap=True)


def strip_controls(text: str) -> str:
    """Text without control characters other than line breaks and tabs: a model must not control the terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = (), wrap: str = ""
) -> Table:
    """A plain table; the columns in `right` are right-aligned, only the column `wrap` may wrap."""
    result = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    result.show_header = any(columns)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        result.add_column(column, justify=justify, no_wrap=column != wrap, overflow="fold", header_style="dim")
    for row in rows:
        result.add_row(*(escape(str(cell)) for cell in row))
    return result


def format_size(count: int) -> str:
    """A number of bytes, in units of 1024: `1536` gives `1.5 KB`."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024 or unit == "GB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def parse_size(text: str) -> int:
    """A number of bytes, in units of 1024: `8GB` gives `8 * 1024**3`; the inverse of `format_size`.

    Raises:
        ValueError: it is not a positive number with one of the units B, KB, MB, GB, TB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a size; write 8GB or 500MB")
    return round(float(match[1]) * 1024.0 ** " KMGT".index(match[2].upper() or " "))


def format_duration(seconds: float) -> str:
    """A number of seconds, rounded: `93` gives `1 min 33 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
