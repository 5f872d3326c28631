"""Typed JSON: dataclasses to JSON text and strictly back.

A key that is missing, unknown or given twice, or a value of another type, is an error that names its place. A number
that JSON cannot hold is the word NaN, Infinity or -Infinity. Fields are of the types bool, int, float, str, `Literal`,
tuples of one type or of several, mappings from str, dataclasses, unions of these and `Any`, which is any JSON value;
`Annotated` adds constraints.

Knows annotations; nothing about what the values mean.
"""

from __future__ import annotations

import json
import math
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
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

DEEPEST = 50  # lists and objects inside one another
SHOWN = 40  # characters of a key in an error

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
class AtMost:
    """A constraint: the largest number allowed."""

    maximum: int


@dataclass(frozen=True)
class Matching:
    """A constraint: the regular expression that the whole text matches, and what such a text is called in errors."""

    pattern: str
    noun: str = ""


Line = Annotated[str, Matching(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,500}", "one line of text")]


@dataclass(frozen=True)
class Like:
    """A constraint: an object with the fields of this dataclass, of which those with a default may be missing, and any
    others. It remains a dictionary."""

    kind: type[Any]


@dataclass(frozen=True)
class Later:
    """Not a constraint: a field that files of earlier versions lack, where it is None; it is left out where it is."""


@dataclass(frozen=True)
class Words:
    """Not a constraint: a float that may also be one of `WORDS`."""


def to_values(value: Any) -> Any:
    """A value of these types as `json.dumps` takes it: objects as dictionaries, non-finite numbers as words."""
    if is_dataclass(value):
        kind: Any = type(value)
        items, later = ((field.name, getattr(value, field.name)) for field in fields(value)), _later(kind)
        return {name: to_values(item) for name, item in items if item is not None or name not in later}
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
    return from_values(kind, parse(text))


def parse(text: str | bytes) -> Any:
    """The values of JSON text: as `json.loads`, of what other readers take alike and every writer can write.

    Raises:
        ValueError: it is not JSON in UTF-8, a key is given twice, lists and objects are nested over `DEEPEST` deep, or
            it holds half a surrogate pair.
    """
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [values], 0
    while level := [item for value in level if isinstance(value, dict | list) for item in _items(value)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{shown(key)} is given twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _items(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    """What an object or a list holds; its texts are encoded on the way."""
    for text in (*value, *value.values()) if isinstance(value, dict) else value:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{shown(text)} holds half a surrogate pair") from None
    yield from value.values() if isinstance(value, dict) else value


def shown(text: str) -> str:
    """A text as an error shows it: on one line, and not longer than it helps."""
    line = text if text.isprintable() and text else ascii(text)
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def from_values(kind: type[T], values: Any) -> T:
    """A value of one of these types from what `json.loads` returned, the inverse of `to_values`.

    Raises:
        ValueError: it is not of that type; the message names the place.
    """
    result: T = _read(kind, values, "")
    return result


def from_settings(kind: type[T], values: Any) -> T:
    """The fields of a dataclass from an object that has others too, or lacks those that have a default.

    Raises:
        ValueError: one is of another type; the message names it.
    """
    result: T = _read_object(kind, values, "", is_open=True)
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
    result: Any
    if kind is Any:
        result = value
    elif is_dataclass(kind):
        result = _read_object(kind, value, where)
    elif origin in (Union, types.UnionType):
        result = _read_union(arguments, value, where)
    elif origin is Literal:
        result = _checked(value, value in arguments, where, f"one of {', '.join(map(repr, arguments))}")
    elif origin is tuple:
        result = _read_list(arguments, value, where)
    elif origin is not None:
        items = _checked(value, isinstance(value, dict), where, "an object").items()
        key_kind, item_kind = arguments
        result = {
            _read(key_kind, key, _inside(where, key)): _read(item_kind, item, _inside(where, key))
            for key, item in items
        }
    else:
        result = _checked(value, _is_of(kind, value), where, NOUNS[kind])
    for problem in _problems(notes, result):
        raise ValueError(f"{where or 'it'} {problem}")
    for note in notes:
        if isinstance(note, Like):
            _read_object(note.kind, value, where, is_open=True)
    return result


def _read_object(kind: Any, value: Any, where: str, is_open: bool = False) -> Any:
    """Args:
    is_open: whether there may be further keys, and none where the field has a default.
    """
    names = hints(kind)
    _checked(value, isinstance(value, dict), where, "an object")
    unknown = next((name for name in value if name not in names), None)
    if unknown is not None and not is_open:
        raise ValueError(f"{_inside(where, unknown)} is an unknown key")
    needed = _without_default(kind) if is_open else [name for name in names if name not in _later(kind)]
    if missing := next((name for name in needed if name not in value), None):
        raise ValueError(f"{_inside(where, missing)} is missing")
    return kind(**{name: _read(names[name], value[name], _inside(where, name)) for name in names if name in value})


@cache
def _without_default(kind: Any) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING)


@cache
def _later(kind: Any) -> frozenset[str]:
    """The fields that earlier versions did not write."""
    return frozenset(name for name, annotation in hints(kind).items() if Later() in constraints(annotation)[1])


def _read_list(kinds: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    """Args:
    kinds: that of every item and `...`, or one for each item.
    """
    items = _checked(value, isinstance(value, list), where, "a list")
    if kinds[-1] is ...:
        kinds = [kinds[0]] * len(items)
    _checked(value, len(items) == len(kinds), where, f"a list of {len(kinds)}")
    return tuple(
        _read(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


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
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _problems(notes: Sequence[Any], value: Any) -> Iterator[str]:
    for note in notes:
        match note:
            case OneOf(values) if value not in values:
                yield f"is not one of {', '.join(map(str, values))}"
            case AtLeast(minimum) if value < minimum:
                yield f"is less than {minimum}"
            case AtMost(maximum) if value > maximum:
                yield f"is more than {maximum}"
            case Matching(pattern, noun) if not re.fullmatch(pattern, value):
                yield f"is not {noun}" if noun else f"does not match {pattern}"


def _checked(value: Any, good: bool, where: str, noun: str) -> Any:
    if not good:
        raise ValueError(f"{where or 'it'} is not {noun}")
    return value


def _inside(where: str, name: str) -> str:
    return f"{where}.{shown(name)}" if where else shown(name)
