"""The strictness every part of a recipe shares, and the error of fields that do not go together."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Impossible(ValueError):
    """Fields that are fine one by one and impossible together; `key` is the one to change."""

    def __init__(self, key: str, what: str, next: str) -> None:
        super().__init__(what)
        self.key, self.what, self.next = key, what, next


class Strict(BaseModel):
    """Unknown keys refused, no conversions (`"1"` is not 1), nothing changes after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)
