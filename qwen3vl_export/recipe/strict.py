"""The strict base of every model of a recipe, and the error of fields that conflict."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FieldConflict(ValueError):
    """Fields that are valid one by one and impossible together.

    Args:
        key: the one to change.
        problem: what is wrong with it.
        advice: what to write instead.
    """

    def __init__(self, key: str, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.key, self.problem, self.advice = key, problem, advice


class StrictModel(BaseModel):
    """Refuses unknown keys, converts nothing (`"1"` is not 1), and is immutable after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)
