"""A checkpoint's settings files as they are stored, and how what transformers makes of them is refused.

Knows file names and JSON; nothing about what a setting means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, Qwen3VLExportError, first_line, is_panic
from ..files import settings_files

Json = Mapping[str, Any]


def stored_json(root: Path, name: str) -> Json | None:
    """A stored file, parsed; None if there is none, or if it is not a JSON object."""
    try:
        values = json.loads((root / name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def to_bytes(values: Json) -> bytes:
    """A JSON file as it is written into an artifact."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def check_json(root: Path) -> None:
    """Refuse settings files that are damaged, before transformers guesses.

    Raises:
        CheckpointError: a JSON file that is not an object.
    """
    for path in settings_files(root):
        if path.suffix == ".json":
            with refuse(path, "it", "Download it again"):
                if not isinstance(json.loads(path.read_text("utf-8")), dict):
                    raise CheckpointError(f"{path}: not a JSON object", "Download it again")


@contextmanager
def refuse(where: Path | str, kind: str, advice: str) -> Iterator[None]:
    """Inside, whatever transformers, tokenizers or the runtime raise is a `CheckpointError` about these settings."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:  # transformers raises many types, tokenizers bare Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = error.what if isinstance(error, Qwen3VLExportError) else first_line(error)
        reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
        raise CheckpointError(f"{where}: {kind} cannot be read ({reason})", advice) from error
