"""Sections of a document that scripts write: what stands between `<!-- name -->` and `<!-- /name -->`.

Knows documents and markers; nothing about what is written there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from qwen3vl_export.errors import ParityError


def update(document: Path, sections: Mapping[str, Iterable[str]], check: bool) -> int:
    """Write sections of a document, and say whether that changed it.

    Args:
        sections: the lines of each, by name.
        check: change nothing.

    Returns:
        An exit code: 1 where `check` found something else than the lines.

    Raises:
        ParityError: the document has no such section.
    """
    before = after = document.read_text("utf-8")
    for name, lines in sections.items():
        after = filled(document, after, name, lines)
    if after == before:
        print(f"{document.name} is current")
    elif check:
        print(f"{document.name} differs: run this without --check")
    else:
        document.write_text(after, "utf-8")
        print(f"{document.name} updated")
    return int(check and after != before)


def filled(document: Path, text: str, name: str, lines: Iterable[str]) -> str:
    """The text with one section replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ParityError(f"{document.name}: has no <!-- {name} --> … <!-- /{name} -->", "Put the markers back")
    body = "\n".join(lines)
    return pattern.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)
