"""Small ways to spoil an artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "onnx/decoder_model_merged.onnx_data"


def edit(root: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change one of its JSON files."""
    values = json.loads((root / name).read_text("utf-8"))
    change(values)
    (root / name).write_text(json.dumps(values), "utf-8")


def append(path: Path) -> None:
    """One byte more."""
    with path.open("ab") as file:
        file.write(b"!")
