"""Resolves a string where a file is expected: a path, or the content of a URL.

Knows `http:`, `https:`, `file:` and `data:`; nothing about what is in the file.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from pathlib import Path

from ..errors import InputError
from .fetch import SCHEMES, UrlRules, fetch, redact


def locate(source: str, rules: UrlRules) -> tuple[Path | bytes, str]:
    """The file's path, or its bytes, and its name for errors.

    Raises:
        InputError: a `data:` URL that is not base64, or a URL that cannot be fetched.
    """
    if source.startswith(SCHEMES):
        return fetch(source, rules), redact(source)
    if source.startswith("data:"):
        try:
            return base64.b64decode(source.partition(",")[2], validate=True), "data URL"
        except binascii.Error as error:
            raise InputError(f"data URL: not base64 ({error})", "Expected data:image/png;base64,...") from error
    path = Path(urllib.parse.unquote(source[len("file://") :]) if source.startswith("file://") else source)
    return path, str(path)
