"""A checkpoint's `quantization_config`: its keys are read, or refused by name. Knows nothing about tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import CheckpointError

UNQUANTIZED = "Use the checkpoint it was quantized from, or another quantized form of it"


@dataclass(frozen=True)
class QuantizationConfig:
    """The dictionary, or one inside it.

    Attributes:
        file: the `config.json` that it is in.
        path: of the dictionary in that file; empty for the whole.
    """

    file: Path
    values: Mapping[str, Any]
    path: str = ""

    @property
    def method(self) -> Any:
        """`quant_method`, or bitsandbytes: its older files have nothing but `load_in_4bit` or `load_in_8bit`.

        Source: transformers, `AutoHfQuantizer.from_config`.
        """
        is_bitsandbytes = self.get("load_in_4bit") or self.get("load_in_8bit")
        return "bitsandbytes" if is_bitsandbytes else self.get("quant_method")

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value; None counts as missing."""
        value = self.values.get(key)
        return default if value is None else value

    def inside(self, key: str) -> QuantizationConfig:
        """The dictionary under a key; empty if there is none."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refusal(key, "an object is read")
        return QuantizationConfig(self.file, value, self.path_of(key))

    def path_of(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def require(self, key: str, readable: tuple[Any, ...], default: Any = None) -> Any:
        """A key's value, one of `readable`.

        Raises:
            CheckpointError: it has another one.
        """
        value = self.get(key, default)
        if value not in readable:
            raise self.refusal(key, f"this tool reads {' and '.join(map(repr, readable))}")
        return value

    def require_empty(self, key: str) -> None:
        """Refuse what a key asks for.

        Raises:
            CheckpointError: it has a value that is neither empty nor false.
        """
        if self.get(key):
            raise self.refusal(key, "this tool cannot read that")

    def size(self, key: str) -> tuple[int, int] | None:
        """Rows and columns of a block or a matrix; None if the key is missing.

        Raises:
            CheckpointError: the value is not two positive numbers.
        """
        value = self.get(key)
        if value is None:
            return None
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
            raise self.refusal(key, "two positive numbers are read")
        return value[0], value[1]

    def count(self, key: str) -> int:
        """A positive number.

        Raises:
            CheckpointError: the value is none.
        """
        value = self.get(key)
        if not isinstance(value, int) or value < 1:
            raise self.refusal(key, "a positive number is read")
        return value

    def number(self, key: str) -> float:
        """A number.

        Raises:
            CheckpointError: the value is none.
        """
        value = self.get(key)
        if not isinstance(value, int | float):
            raise self.refusal(key, "a number is read")
        return value

    def group(self, key: str, default: int) -> int | None:
        """Values of a row that share a scale; None for -1, a whole row.

        Raises:
            CheckpointError: the value is no such number.
        """
        value = self.get(key, default)
        if not isinstance(value, int) or value < -1 or value == 0:
            raise self.refusal(key, "a positive number, or -1 for a whole row, is read")
        return None if value == -1 else value

    def refusal(self, key: str, reason: str) -> CheckpointError:
        """The error for a value that cannot be read."""
        return CheckpointError(f"{self.file}: {self.path_of(key)} is {self.values.get(key)!r}, {reason}", UNQUANTIZED)
