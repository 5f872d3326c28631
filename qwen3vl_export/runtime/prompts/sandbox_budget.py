"""The budget of one rendering of a chat template: how much it may compute, and how large a value it may make.

No clock is read: every operation takes from the budget in proportion to what it reads and writes, and what it would
return is estimated before it runs.

Knows Python's values, and how Jinja's functions grow them; nothing about templates.
"""

from __future__ import annotations

import re
import string
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

WORK = 1_000_000  # operations of a rendering, each as many more as it handles multiples of UNIT characters
UNIT = 512
LARGEST_VALUE = 1 << 24  # characters; of a list or a mapping, of all that it holds
MOST_PRINTED = 1 << 23  # characters of all that is printed, what macros and blocks print included
DEEPEST_VALUE = 100  # lists and mappings inside one another
LARGEST_INTEGER = 4096  # bits
ITEM = 64  # characters that an item of a list counts as, beside its own

# Functions, filters and tests that look at a part of what they are given.
PASSIVE = frozenset(("attr", "count", "d", "default", "first", "get", "items", "keys", "last", "length", "values"))
# Those that return no more than they are given, in time proportional to it.
LINEAR = frozenset(
    re.findall(
        r"\w+",
        """abs capitalize casefold copy decode dictsort e encode endswith eq equalto escape find float forceescape
        ge greaterthan groupby gt hex in index int isalnum isalpha isascii isdecimal isdigit isidentifier
        islower isnumeric isprintable isspace istitle isupper le lessthan list lower lstrip lt map max min ne
        partition random reject rejectattr removeprefix removesuffix reverse rfind rindex rpartition rsplit
        rstrip safe sameas select selectattr sort split splitlines startswith string strip swapcase title trim""",
    )
)
SLOW = frozenset(("dictsort", "groupby", "sort", "tojson", "unique"))  # those that take several times as long
QUADRATIC = frozenset(("pprint", "striptags", "sum", "truncate", "urlize", "wordwrap", "xmlattr"))
VIEWS = (range, KeysView, ValuesView, ItemsView)
NUMBERS = re.compile(r"\d+")
GIVEN_WIDTH = re.compile(r"%[#0\- +\d.]*\*")  # of a field of printf


class TooMuchError(SecurityError):
    """A template that computes more than any conversation needs."""


class WorkBudget:
    """The work that is left of one rendering; none while compiling, where nothing is computed in advance."""

    def __init__(self, left: int | None = None) -> None:
        self.left = WORK if left is None else left
        self.printed = 0

    def take(self, characters: int = 0) -> None:
        """Take one operation that handles so many characters.

        Raises:
            TooMuchError: none is left.
        """
        self.left -= 1 + characters // UNIT
        if self.left < 0:
            raise TooMuchError(f"it takes over {WORK} operations")

    def take_printed(self, characters: int) -> None:
        """Count characters that are printed.

        Raises:
            TooMuchError: they are too many.
        """
        self.printed += characters
        if self.printed > MOST_PRINTED:
            raise TooMuchError(f"it prints over {MOST_PRINTED} characters")
        self.take(characters)


BUDGET: ContextVar[WorkBudget] = ContextVar("budget")


def take(characters: int = 0) -> None:
    """Take from the budget of the rendering that runs."""
    BUDGET.get().take(characters)


def size(value: Any) -> int:
    """Characters of a value with everything in it, each as often as it would be printed.

    Raises:
        TooMuchError: it is larger or nested deeper than any that a template may make.
    """
    total, depth, level = 0, 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Namespace):
                item = object.__getattribute__(item, "_Namespace__attrs")
            if isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, int):
                total += item.bit_length() // 3
            elif isinstance(item, Mapping):
                total += 2 * ITEM * len(item)
                inner += [*item, *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                total += ITEM * len(item)
                inner += item
            else:
                total += ITEM * len(item) if isinstance(item, VIEWS) else 1
            refuse_larger(total)
        level, depth = inner, depth + 1
        if depth > DEEPEST_VALUE:
            raise TooMuchError(f"a value is nested over {DEEPEST_VALUE} deep")
    return total


def made(value: Any) -> Any:
    """The value, if it is not too large to have been made.

    Raises:
        TooMuchError: it is, or no work is left.
    """
    if isinstance(value, int) and value.bit_length() > LARGEST_INTEGER:
        raise TooMuchError(f"a number has over {LARGEST_INTEGER} bits")
    take(size(value))
    return value


def settled(value: Any) -> Any:
    """The value; of a generator, which hides how much it gives, the list."""
    return list(Turns(value, 0)) if isinstance(value, Iterator) else value


def refuse_larger(characters: int) -> None:
    """Refuse an operation that would make a value of so many characters."""
    if characters > LARGEST_VALUE:
        raise TooMuchError(f"a value has over {LARGEST_VALUE} characters")


def check_call(name: str, subject: Any, arguments: Iterable[Any]) -> None:
    """Refuse a function or filter that would return too much, before it runs.

    Args:
        subject: what the method belongs to or the filter is applied to.
    """
    arguments = list(arguments)
    if name in PASSIVE:
        take()
        return
    sizes = [size(value) for value in arguments]
    own = size(subject)
    take((own + sum(sizes)) * (4 if name in SLOW else 1))
    match arguments:
        case [str(old), str(new), *_] if name == "replace" and isinstance(subject, str):
            refuse_larger(own + subject.count(old) * len(new))
            return
    if name in ("format", "format_map"):
        specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(str(subject))]
        check_format(specs, any("{" in spec for spec in specs), own + sum(sizes) * len(specs))
    elif name == "%":
        check_operator(name, subject, tuple(arguments))
    elif name in QUADRATIC:
        refuse_larger(own * max(own, *weights(arguments, sizes), 1) if own > 1 else 0)
    elif name not in LINEAR:
        *_, second, largest = sorted((1, 1, own, *weights(arguments, sizes)))
        refuse_larger(second * largest)


def weights(arguments: Sequence[Any], sizes: Sequence[int]) -> Iterator[int]:
    """By how much each argument may multiply a result: a number by itself, anything else by its size."""
    for value, characters in zip(arguments, sizes, strict=True):
        yield abs(value) if isinstance(value, int) else characters


def check_format(specs: Iterable[str], is_given: bool, characters: int) -> None:
    """Refuse a format that would print too much.

    Args:
        specs: the fields: a number in one is a width or a precision.
        is_given: whether a field takes its width from the arguments, which no template needs.
        characters: of the format, and of all arguments in each field.
    """
    if is_given:
        raise TooMuchError("a format takes a width from its arguments")
    refuse_larger(characters + sum(int(number[:9]) for spec in specs for number in NUMBERS.findall(spec)))


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation on two values that would make too large a one, before it runs."""
    bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
    match operator:
        case "+":
            refuse_larger(size(left) + size(right))
        case "*" if all(isinstance(value, int) for value in (left, right)):
            refuse_integer(sum(bits))
        case "*":
            count = next((value for value in (left, right) if isinstance(value, int)), 1)
            whole = next((value for value in (left, right) if not isinstance(value, int | float)), "")
            refuse_larger(size(whole) * max(count, 0))
        case "**" if all(isinstance(value, int) for value in (left, right)):
            refuse_integer(bits[0] * abs(right) if bits[1] <= LARGEST_INTEGER else LARGEST_INTEGER + 1)
        case "%" if isinstance(left, str | bytes):
            specs = str(left).split("%")[1:]
            check_format(specs, bool(GIVEN_WIDTH.search(str(left))), size(left) + size(right) * len(specs))


def refuse_integer(bits: int) -> None:
    if bits > LARGEST_INTEGER:
        raise TooMuchError(f"a number has over {LARGEST_INTEGER} bits")


class Turns:
    """What a loop goes through; each turn takes from the budget."""

    def __init__(self, values: Iterable[Any], characters: int) -> None:
        self._values, self._characters = values, characters

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            BUDGET.get().take_printed(self._characters)
            yield value


class SizedTurns(Turns):
    """Turns whose number is known, for `loop.length` and `loop.last`."""

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]
