"""Finds pictures and videos in a line that was typed, dropped or pasted: paths or URLs, quoted or not, anywhere in it.

Knows file names; opens nothing.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"}
URLS = ("http://", "https://", "file://")
WORD = re.compile(r"""'([^']*)'|"([^"]*)"|((?:\\.|[^\s\\])+)""")  # quoted, or with spaces escaped as in a shell
PUNCTUATION = ".,;:!?)]}"
OPENING = "([{"


@dataclass(frozen=True)
class Reference:
    """A picture or video named in a line, at [start, end)."""

    source: str  # a path or URL
    is_video: bool
    start: int
    end: int

    @property
    def name(self) -> str:
        """The text that replaces it in a sentence."""
        return base_name(self.source)


@dataclass(frozen=True)
class ParsedLine:
    """The pictures and videos in a line, and the text without them."""

    text: str
    references: tuple[Reference, ...]
    missing: tuple[str, ...]  # words that look like names of pictures, but of files that do not exist


def parse_line(line: str) -> ParsedLine:
    """Parse a line.

    A reference at the beginning or the end is removed from the text; within a sentence its name remains. A path that
    does not exist still is a reference if it cannot be a word of the question: if it is quoted, or has a directory.
    """
    candidates = list(find_references(line))
    missing = [item for item in candidates if not is_url(item.source) and not os.path.exists(item.source)]
    words = [item for item in missing if "/" not in item.source and line[item.start] not in "'\""]
    references = tuple(item for item in candidates if item not in words)
    return ParsedLine(remove_references(line, references), references, tuple(item.source for item in words))


def find_references(line: str) -> Iterator[Reference]:
    """Everything in a line that looks like the name of a picture or video, whether it exists or not."""
    for match in WORD.finditer(line):
        quoted = match[1] if match[1] is not None else match[2]
        start, end = match.span()
        if quoted is not None:
            source = quoted
        else:
            bare = match[3].rstrip(PUNCTUATION)
            end = start + len(bare)
            bare = bare.lstrip(OPENING)
            start = end - len(bare)
            source = re.sub(r"\\(.)", r"\1", bare)
        is_video = file_suffix(source) in VIDEOS
        if is_video or file_suffix(source) in IMAGES:
            yield Reference(source if is_url(source) else os.path.expanduser(source), is_video, start, end)


def remove_references(line: str, references: tuple[Reference, ...]) -> str:
    """The line without references at its beginning and end, and with the names of those within."""
    start, end = 0, len(line)
    inner = list(references)
    while inner and not line[start : inner[0].start].strip():
        start = inner.pop(0).end
    while inner and not line[inner[-1].end : end].strip():
        end = inner.pop().start
    pieces = []
    for item in inner:
        pieces += [line[start : item.start], item.name]
        start = item.end
    return "".join([*pieces, line[start:end]]).strip()


def base_name(source: str) -> str:
    """The last part of a path or URL."""
    path = urllib.parse.unquote(without_query(source)) if is_url(source) else source
    return os.path.basename(path.rstrip("/")) or source


def is_url(source: str) -> bool:
    return source.startswith(URLS)


def file_suffix(source: str) -> str:
    """The suffix in lower case, without a URL's query and fragment."""
    path = without_query(source) if is_url(source) else source
    return os.path.splitext(path)[1].lower()


def without_query(url: str) -> str:
    """A URL without its query and fragment; nothing else of it is parsed, because it may be no URL at all."""
    return url.partition("#")[0].partition("?")[0]
