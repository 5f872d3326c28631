"""What packaging files are made from: the directory so far, the model's facts and the files of each graph."""

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
class StorageRules:
    """How weight files must be stored for the runtimes that read them.

    Attributes:
        largest_file: bytes that no file should exceed; None for no limit.
        named_by_graph: the weights of every graph are in files named after it.
    """

    largest_file: int | None = None
    named_by_graph: bool = False


@dataclass(frozen=True)
class Package:
    """An artifact directory being packaged.

    Attributes:
        directory: has the graphs and the checkpoint's settings.
        graphs: precision -> graph -> its manifest entry.
        provider: of onnxruntime, that settings choose where a runtime reads it from there: cpu or cuda.
    """

    directory: Path
    facts: Facts
    graphs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    provider: str = "cpu"

    def settings(self, name: str) -> dict[str, Any]:
        """One of the directory's JSON files, parsed."""
        result: dict[str, Any] = json.loads((self.directory / name).read_text("utf-8"))
        return result

    def chat_template(self) -> str | None:
        """The chat template, from its own file or from the tokenizer's settings."""
        path = self.directory / CHAT_TEMPLATE
        if path.is_file():
            return path.read_text("utf-8")
        template: str | None = self.settings("tokenizer_config.json").get("chat_template")
        return template
