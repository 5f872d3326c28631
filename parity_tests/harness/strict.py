"""Strict models for the harness's YAML files, and what is wrong with a file in one line."""

from __future__ import annotations

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """Unknown keys are refused, nothing is converted (`"1"` is not 1), nothing changes after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def describe_problem(error: yaml.YAMLError | ValidationError) -> str:
    """Where a file is wrong and how, on one line: the first problem of a model, or what the YAML parser said."""
    if isinstance(error, yaml.YAMLError):
        return f"not YAML: {' '.join(str(error).split())}"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
