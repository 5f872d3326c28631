"""Typed JSON: dataclasses to JSON text and strictly back.

A key that is missing or unknown, or a value of another type, is an error that names its place. A number that JSON
cannot hold is the word NaN, Infinity or -Infinity. Fields are of the types bool, int, float, str, `Literal`, tuples of
one type, mappings from str, dataclasses and unions of these; `Annotated` adds constraints.

Knows annotations; nothing about what the values mean.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

WORDS: Mapping[str, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
NOUNS: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "null",
}

T = TypeVar("T")


@dataclass(frozen=True)
class OneOf:
    """A constraint: the only values allowed."""

    values: tuple[int | str, ...]


@dataclass(frozen=True)
class AtLeast:
    """A constraint: the smallest number allowed."""

    minimum: int


@dataclass(frozen=True)
class Matching:
    """A constraint: the regular expression that a text matches."""

    pattern: str


@dataclass(frozen=True)
class Words:
    """Not a constraint: a float that may also be one of `WORDS`."""


def to_values(value: Any) -> Any:
    """A value of these types as `json.dumps` takes it: objects as dictionaries, non-finite numbers as words."""
    if is_dataclass(value):
        return {field.name: to_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """A value of these types as JSON text."""
    return json.dumps(to_values(value), indent=indent, ensure_ascii=False, allow_nan=False)


def from_json(kind: type[T], text: str | bytes) -> T:
    """A value of one of these types from JSON text, the inverse of `to_json`.

    Raises:
        ValueError: it is not JSON, or not of that type; the message names the place.
    """
    try:
        return from_values(kind, json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_values(kind: type[T], values: Any) -> T:
    """A value of one of these types from what `json.loads` returned, the inverse of `to_values`.

    Raises:
        ValueError: it is not of that type; the message names the place.
    """
    result: T = _read(kind, values, "")
    return result


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by name, with their constraints."""
    return get_type_hints(kind, include_extras=True)


def constraints(kind: Any) -> tuple[Any, Sequence[Any]]:
    """An annotation without its constraints and descriptions, and these."""
    return (kind.__origin__, kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def _read(annotation: Any, value: Any, where: str) -> Any:
    kind, notes = constraints(annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if Words() in notes and isinstance(value, str) and value in WORDS:
        return WORDS[value]
    if is_dataclass(kind):
        result: Any = _read_object(kind, value, where)
    elif origin in (Union, types.UnionType):
        result = _read_union(arguments, value, where)
    elif origin is Literal:
        result = _checked(value, value in arguments, where, f"one of {', '.join(map(repr, arguments))}")
    elif origin is tuple:
        items = _checked(value, isinstance(value, list), where, "a list")
        result = tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    elif origin is not None:
        items = _checked(value, isinstance(value, dict), where, "an object").items()
        result = {key: _read(arguments[1], item, _inside(where, key)) for key, item in items}
    else:
        result = _checked(value, _is_of(kind, value), where, NOUNS[kind])
    for problem in _problems(notes, result):
        raise ValueError(f"{where or 'it'} {problem}")
    return result


def _read_object(kind: Any, value: Any, where: str) -> Any:
    names = hints(kind)
    _checked(value, isinstance(value, dict), where, "an object")
    if unknown := next((name for name in value if name not in names), None):
        raise ValueError(f"{_inside(where, unknown)} is an unknown key")
    if missing := next((name for name in names if name not in value), None):
        raise ValueError(f"{_inside(where, missing)} is missing")
    return kind(**{name: _read(names[name], value[name], _inside(where, name)) for name in names})


def _read_union(members: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = [member for member in members if member is not type(None)]
    for member in members[:-1]:
        try:
            return _read(member, value, where)
        except ValueError:
            continue
    return _read(members[-1], value, where)


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type; true and false are no numbers, an integer is also a number."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _problems(notes: Sequence[Any], value: Any) -> Iterator[str]:
    for note in notes:
        match note:
            case OneOf(values) if value not in values:
                yield f"is not one of {', '.join(map(str, values))}"
            case AtLeast(minimum) if value < minimum:
                yield f"is less than {minimum}"
            case Matching(pattern) if not re.search(pattern, value):
                yield f"does not match {pattern}"


def _checked(value: Any, good: bool, where: str, noun: str) -> Any:
    if not good:
        raise ValueError(f"{where or 'it'} is not {noun}")
    return value


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
