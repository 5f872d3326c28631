"""Pictures and videos in a line a person typed, dropped or pasted: by path or URL, quoted or not, anywhere in it.

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
WORD = re.compile(r"""'([^']*)'|"([^"]*)"|((?:\\.|[^\s\\])+)""")  # quoted, or with its spaces escaped as shells do
PUNCTUATION = ".,;:!?)]}"
OPENING = "([{"


@dataclass(frozen=True)
class Reference:
    """A picture or video that is named in a line."""

    source: str  # a path or URL
    is_video: bool
    start: int  # where in the line
    end: int

    @property
    def name(self) -> str:
        """What stands for it in a sentence."""
        return name_of(self.source)


@dataclass(frozen=True)
class Line:
    """What a line says: the pictures, and the text without them."""

    text: str
    references: tuple[Reference, ...]
    missing: tuple[str, ...]  # names that look like pictures, of files that are not there


def read_line(line: str) -> Line:
    """Take a line apart.

    A reference at the beginning or the end leaves the text; within a sentence its name stays. A path that is not there
    counts as one if it cannot be a word of the question: quoted, or with a directory in it.
    """
    found = list(references(line))
    missing = [item for item in found if not is_url(item.source) and not os.path.exists(item.source)]
    words = [item for item in missing if "/" not in item.source and line[item.start] not in "'\""]
    taken = tuple(item for item in found if item not in words)
    return Line(without(line, taken), taken, tuple(item.source for item in words))


def references(line: str) -> Iterator[Reference]:
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
        is_video = suffix(source) in VIDEOS
        if is_video or suffix(source) in IMAGES:
            yield Reference(source if is_url(source) else os.path.expanduser(source), is_video, start, end)


def without(line: str, taken: tuple[Reference, ...]) -> str:
    """The line without its first and last references, and the names of those between."""
    start, end = 0, len(line)
    inner = list(taken)
    while inner and not line[start : inner[0].start].strip():
        start = inner.pop(0).end
    while inner and not line[inner[-1].end : end].strip():
        end = inner.pop().start
    pieces = []
    for item in inner:
        pieces += [line[start : item.start], item.name]
        start = item.end
    return "".join([*pieces, line[start:end]]).strip()


def name_of(source: str) -> str:
    """The last part of a path or URL."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(source).path) if is_url(source) else source
    return os.path.basename(path.rstrip("/")) or source


def is_url(source: str) -> bool:
    return source.startswith(URLS)


def suffix(source: str) -> str:
    path = source.partition("?")[0].partition("#")[0] if is_url(source) else source
    return os.path.splitext(path)[1].lower()
