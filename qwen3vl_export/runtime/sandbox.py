"""A sandbox for chat templates of strangers that is bounded in time, memory and recursion.

Jinja's own sandbox keeps a template away from Python's internals, and lets it loop and multiply without end. Here each
rendering has a budget of work. Every turn of a loop, call, filter, test, comparison, operator and printed value takes
from it, in proportion to what is read and written, and no value grows beyond `LARGEST_VALUE`: what an operation would
return is estimated before it runs. No clock is read and no thread is stopped, so the same template and messages are
refused on every machine, or on none.

What Jinja calls through the environment is intercepted there; for what it compiles to Python directly (loops,
comparisons, literals, slices, `~`) the syntax tree is changed first: each such operand passes through a filter that no
template can name. Source: jinja.palletsprojects.com/en/stable/sandbox

Knows values and their sizes; nothing about messages or tokens.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any

import jinja2
import jinja2.nodes as nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 200_000  # characters; published ones have 5,000
WORK = 1_000_000  # operations of a rendering, each as many more as it handles multiples of UNIT characters
UNIT = 512
LARGEST_VALUE = 1 << 24  # characters; of a list or a mapping, of all that it holds
MOST_PRINTED = 1 << 26  # characters of all that is printed, what macros and blocks print included
DEEPEST_VALUE = 100  # lists and mappings inside one another
LARGEST_INTEGER = 4096  # bits
ITEM = 64  # characters that an item of a list counts as, beside its own

# Functions, filters and tests that look at a part of what they are given.
PASSIVE = frozenset(("attr", "count", "d", "default", "first", "get", "items", "keys", "last", "length", "values"))
# Those that return no more than they are given, in time proportional to it.
LINEAR = frozenset(
    re.findall(
        r"\w+",
        "abs capitalize casefold copy decode dictsort e encode endswith eq equalto escape find float forceescape "
        "ge greaterthan groupby gt hex in index int isalnum isalpha isascii isdecimal isdigit isidentifier "
        "islower isnumeric isprintable isspace istitle isupper le lessthan list lower lstrip lt map max min ne "
        "partition random reject rejectattr removeprefix removesuffix reverse rfind rindex rpartition rsplit "
        "rstrip safe sameas select selectattr sort split splitlines startswith string strip swapcase title trim "
        "unique upper wordcount ",
    )
)
SLOW = frozenset(("dictsort", "groupby", "sort", "tojson", "unique"))  # those that take several times as long
QUADRATIC = frozenset(("pprint", "striptags", "sum", "truncate", "urlize", "wordwrap", "xmlattr"))
VIEWS = (range, KeysView, ValuesView, ItemsView)
NUMBERS = re.compile(r"\d+")

ENTERED, WEIGHED, MADE = " entered", " weighed", " made"  # the filters that no template can name


class TooMuchError(SecurityError):
    """A template that computes more than any conversation needs."""


class Budget:
    """The work that is left of one rendering; none while compiling, where nothing is computed in advance."""

    def __init__(self, left: int = WORK) -> None:
        self.left = left
        self.printed = 0

    def take(self, characters: int = 0) -> None:
        """Take one operation that handles so many characters.

        Raises:
            TooMuchError: none is left.
        """
        self.left -= 1 + characters // UNIT
        if self.left < 0:
            raise TooMuchError(f"it takes over {WORK} operations")

    def print(self, characters: int) -> None:
        """Count characters that are printed.

        Raises:
            TooMuchError: they are too many.
        """
        self.printed += characters
        if self.printed > MOST_PRINTED:
            raise TooMuchError(f"it prints over {MOST_PRINTED} characters")
        self.take(characters)


_BUDGET: ContextVar[Budget] = ContextVar("budget")


def take(characters: int = 0) -> None:
    """Take from the budget of the rendering that runs."""
    _BUDGET.get().take(characters)


def size(value: Any) -> int:
    """Characters of a value with everything in it, each as often as it would be printed.

    Raises:
        TooMuchError: it is larger or nested deeper than any that a template may make.
    """
    total, depth, level = 0, 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
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
        check_format(specs, "{", own, arguments)
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


def check_format(specs: Sequence[str], width: str, own: int, arguments: Sequence[Any]) -> None:
    """Refuse a format that would print too much: a number in it is a width or a precision.

    Args:
        specs: the fields.
        width: what a field has in it that takes its width from the arguments, which no template needs.
        own: characters of the format.
    """
    if any(width in spec for spec in specs):
        raise TooMuchError("a format takes a width from its arguments")
    widths = [int(number[:9]) for spec in specs for number in NUMBERS.findall(spec)]
    refuse_larger(own + sum(widths) + len(specs) * sum(map(size, arguments)))


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
            items = right if isinstance(right, tuple) else (right,)
            check_format(str(left).split("%")[1:], "*", size(left), items)


def refuse_integer(bits: int) -> None:
    if bits > LARGEST_INTEGER:
        raise TooMuchError(f"a number has over {LARGEST_INTEGER} bits")


class QuietNamespace(Namespace):
    """`namespace()`, which may hold itself and is therefore not printed."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Turns:
    """What a loop goes through; each turn takes from the budget."""

    def __init__(self, values: Iterable[Any], characters: int) -> None:
        self._values, self._characters = values, characters

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            _BUDGET.get().print(self._characters)
            yield value


class SizedTurns(Turns):
    """Turns whose number is known, for `loop.length` and `loop.last`."""

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]


@jinja2.pass_context  # so that nothing inside is folded into a constant
def entered(context: Context, values: Any, characters: int) -> Any:
    """Filter of what a loop goes through.

    Args:
        characters: of the constant text that a turn prints.
    """
    if isinstance(values, jinja2.Undefined):
        return values
    return (SizedTurns if hasattr(values, "__len__") else Turns)(values, characters)


@jinja2.pass_context
def weighed(context: Context, value: Any) -> Any:
    """Filter of an operand."""
    take(size(value))
    return value


@jinja2.pass_context
def printed(context: Context, value: Any) -> Any:
    """What Jinja calls with each value before it is printed."""
    _BUDGET.get().print(size(value))
    return value


@jinja2.pass_context
def made_in_template(context: Context, value: Any) -> Any:
    """Filter of a literal or a concatenation."""
    return made(value)


class Bounding(NodeTransformer):
    """Passes what Jinja compiles to plain Python through filters of the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = through(ENTERED, node.iter, nodes.Const(constant_text(node.body)))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = through(WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = through(WEIGHED, operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [through(WEIGHED, each) for each in node.nodes]
        return through(MADE, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = through(WEIGHED, node.node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return through(MADE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return through(MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return through(MADE, node) if node.ctx == "load" else node


def through(name: str, node: nodes.Node, *arguments: nodes.Expr) -> nodes.Filter:
    """A value passed through a filter."""
    return nodes.Filter(node, name, [*arguments], [], None, None, lineno=node.lineno)


def constant_text(body: Iterable[nodes.Node]) -> int:
    """Characters of constant text in these nodes, without those of the loops in them."""
    total, pending = 0, list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, nodes.TemplateData):
            total += len(node.data)
        pending += () if isinstance(node, nodes.For) else node.iter_child_nodes()
    return total


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget; templates are made with `from_string` and rendered with `render`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=printed, **options)
        self.globals["namespace"] = QuietNamespace
        del self.globals["lipsum"]  # random words, as many as one asks for
        self.constant_text = 0

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> jinja2.Template:
        """As of `jinja2.Environment`; filters and tests must be registered before.

        Raises:
            TemplateSyntaxError: whatever is wrong with the source.
        """
        for functions in (self.filters, self.tests):
            for name, function in functions.items():
                functions[name] = bounded(name, function)
        self.filters |= {ENTERED: entered, WEIGHED: weighed, MADE: made_in_template}
        if len(source) > LONGEST_TEMPLATE:
            raise jinja2.TemplateSyntaxError(f"it has over {LONGEST_TEMPLATE} characters", 1)
        token = _BUDGET.set(Budget(0))
        try:
            tree = self.parse(source)
            constant = sum(len(data.data) for data in tree.find_all(nodes.TemplateData))
            self.constant_text = max(self.constant_text, constant)
            return super().from_string(Bounding().visit(tree), *arguments, **options)
        except jinja2.TemplateSyntaxError:
            raise
        except (RecursionError, MemoryError, SyntaxError, ValueError, jinja2.TemplateError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)
            raise jinja2.TemplateSyntaxError(reason, 1) from error
        finally:
            _BUDGET.reset(token)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(map(settled, args))
        if isinstance(__obj, Macro | BlockReference):
            _BUDGET.get().print(__self.constant_text)
        elif isinstance(__obj, LoopContext):
            args = tuple(entered(__context, values, __self.constant_text) for values in args)
        elif __obj is not __self.globals["range"]:
            method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps `str.format`
            name = str(getattr(method, "__name__", type(method).__name__))
            check_call(name, getattr(method, "__self__", None), (*args, *kwargs.values()))
        return made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return made(super().call_binop(context, operator, left, right))


def bounded(name: str, function: Any) -> Any:
    """A filter or test that is checked before it runs, and its result afterwards."""
    if hasattr(function, "is_bounded"):
        return function
    name = "%" if name == "format" else name
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def check_and_run(*args: Any, **kwargs: Any) -> Any:
        values = args[skipped:] if name in PASSIVE else [settled(value) for value in args[skipped:]]
        check_call(name, values[0] if values else None, (*values[1:], *kwargs.values()))
        return made(function(*args[:skipped], *values, **kwargs))

    check_and_run.is_bounded = True  # type: ignore[attr-defined]
    return check_and_run


def render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """The text of a template.

    Raises:
        TooMuchError: it takes too much work, or gives too long a text.
        jinja2.TemplateError: whatever else is wrong.
    """
    token = _BUDGET.set(Budget())
    try:
        pieces, length = [], 0
        for piece in template.generate(values):
            pieces.append(piece)
            length += len(piece)
            refuse_larger(length)
        return "".join(pieces)
    except RecursionError:
        raise TooMuchError("it calls itself too deeply") from None
    except jinja2.TemplateError:
        raise
    except Exception as error:  # of any class: a template may divide by zero, or leave the range of a type
        raise jinja2.TemplateRuntimeError(str(error) or type(error).__name__) from error
    finally:
        _BUDGET.reset(token)
