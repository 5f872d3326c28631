"""Resolves a string where a file is expected: a path, or the content of a URL.

Knows `http:`, `https:`, `file:` and `data:`; nothing about what is in the file.
"""

from __future__ import annotations

import base64
import urllib.parse
from pathlib import Path

from ...errors import InputError
from .fetch import SCHEMES, UrlRules, fetch, redact


def locate(source: str, rules: UrlRules) -> tuple[Path | bytes, str]:
    """The file's path, or its bytes, and its name for errors. The name of a URL's scheme may have any case.

    Raises:
        InputError: a `data:` URL that is not base64, or a URL that cannot be fetched.
    """
    scheme, colon, rest = source.partition(":")
    url = scheme.lower() + colon + rest
    if url.startswith(SCHEMES):
        return fetch(url, rules), redact(url)
    if url.startswith("data:"):
        try:
            return decode_base64(urllib.parse.unquote(url.partition(",")[2])), "data URL"
        except ValueError as error:
            raise InputError(f"data URL: not base64 ({error})", "Expected data:image/png;base64,...") from error
    path = Path(urllib.parse.unquote(url[len("file://") :]) if url.startswith("file://") else source)
    return path, str(path)


def decode_base64(text: str) -> bytes:
    """The bytes of base64, which may be wrapped into lines; raises `ValueError` if it is something else."""
    return base64.b64decode("".join(text.split()), validate=True)
