"""Terminal output of the commands: results, errors, tables and number formats. Every command prints through it.

On a terminal, colours and the terminal's width; in a pipe or CI, plain wide lines. Names, errors and answers may come
from strangers, so what a terminal would act on is shown as an escape instead (`neutralize`).

Knows nothing about what it prints.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200  # columns in a pipe, so that a table row stays on one line

# What a terminal acts on, what reorders the text around it, and what shows nothing without any script needing it.
# Line breaks and tabs stay, and so do the joiners and direction marks of scripts and emoji.
UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls and DEL: ESC, CSI, OSC, BEL, carriage return, ...
    "\u2028\u2029"  # line and paragraph separators
    "\u202a-\u202e\u2066-\u2069"  # bidirectional embeddings, overrides and isolates
    "\u180e\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible characters
    "\ud800-\udfff"  # half a character: bytes of a file name that are not UTF-8; cannot be encoded
    "]"
)
BREAKS = re.compile("[\t\n]")


def neutralize(text: str) -> str:
    """Text with each unsafe character shown as its JSON escape: ESC as `\\u001b`. JSON stays valid and equal.

    A carriage return before a line break is dropped, because many texts have them.
    """
    return UNSAFE.sub(show_escaped, text.replace("\r\n", "\n"))


def show_escaped(match: re.Match[str]) -> str:
    """The JSON escape of a match."""
    return json.dumps(match[0])[1:-1]


def one_line(text: str) -> str:
    """`neutralize`, for what must not begin a line of its own: line breaks and tabs are shown as escapes too."""
    return BREAKS.sub(show_escaped, neutralize(text))


class Terminal(Console):
    """A rich console that neutralizes all it prints, whatever it is made of; the styles are the program's own.

    Args:
        options: those of `Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As in `Console`; here too, so that widths are those of the escapes."""
        return super().render_str(neutralize(text), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        """As in `Console`."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(neutralize(segment.text), segment.style)


def console(stderr: bool = False) -> Terminal:
    """A console on the current standard output, or on standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return Terminal(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH)


def say(text: str, stderr: bool = False) -> None:
    """Print one line of plain text, never wrapped or interpreted as markup."""
    console(stderr).print(one_line(text), markup=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print one red line to standard error."""
    line = " ".join(text.split())
    console(stderr=True).print(f"[bold red]error:[/] [red]{escape(line)}[/]", soft_wrap=True)


def print_lines(text: str) -> None:
    """Print plain text of several lines to standard error, such as a traceback."""
    console(stderr=True).print(text.rstrip("\n"), markup=False, soft_wrap=True)


def write(text: str) -> None:
    """Write text that is data to standard output, at once: harmless on a terminal, exact in a pipe."""
    sys.stdout.write(neutralize(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, and a line break; the escapes of unsafe characters are JSON's own, also in a pipe."""
    write(neutralize(json.dumps(value, indent=indent, ensure_ascii=False)) + "\n")


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
        result.add_row(*(escape(one_line(str(cell))) for cell in row))
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
    size = float(match[1]) * 1024.0 ** " KMGT".index(match[2].upper() or " ") if match else 0.0
    if not 0 < size < math.inf:
        raise ValueError(f"{text!r} is not a size; write 8GB or 500MB")
    return round(size)


def format_duration(seconds: float) -> str:
    """A number of seconds, rounded: `93` gives `1 min 33 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def parse_duration(text: str) -> float:
    """A number of seconds: `1h30min` gives `5400.0`; the inverse of `format_duration`.

    Raises:
        ValueError: it is not a positive number with one of the units h, min, s, or several in this order.
    """
    number = r"(?:(\d+(?:\.\d+)?)\s*{})?\s*"
    match = re.fullmatch(r"\s*" + "".join(number.format(unit) for unit in ("h", "min", "s")), text, re.IGNORECASE)
    seconds = (
        sum(float(part or 0) * size for part, size in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not a duration; write 30min or 1h30min")
    return seconds
