"""What a packaging file is made from: the directory so far, the model's facts and where each graph lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract import Facts

CHAT_TEMPLATE = "chat_template.jinja"
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Storage:
    """How weight files must be laid out for the runtimes that read them.

    Attributes:
        largest_file: bytes that none should exceed, or None.
        own_data: every graph's weights lie in files named after it.
    """

    largest_file: int | None = None
    own_data: bool = False


@dataclass(frozen=True)
class Package:
    """An artifact directory while it is packaged.

    Attributes:
        directory: holds the graphs and the checkpoint's settings.
        graphs: precision -> graph -> the manifest's entry of it.
    """

    directory: Path
    facts: Facts
    graphs: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def settings(self, name: str) -> dict[str, Any]:
        """One of the directory's JSON files, parsed."""
        result: dict[str, Any] = json.loads((self.directory / name).read_text("utf-8"))
        return result

    def chat_template(self) -> str | None:
        """The chat template, from its own file or from the tokenizer's settings."""
        path = self.directory / CHAT_TEMPLATE
        if path.is_file():
            return path.read_text("utf-8")
        found: str | None = self.settings("tokenizer_config.json").get("chat_template")
        return found
