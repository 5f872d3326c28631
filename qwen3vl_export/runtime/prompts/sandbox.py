"""A sandbox for chat templates of strangers that is bounded in time, memory and recursion.

Jinja's own sandbox keeps a template away from Python's internals, and lets it loop and multiply without end. Here each
rendering has a budget (`sandbox_budget.py`): every turn of a loop, call, filter, test, comparison, operator and
printed value takes from it. No clock is read and no thread is stopped, so the same template and messages are refused on
every machine, or on none.

What Jinja calls through the environment is intercepted there; for what it compiles to Python directly (loops,
comparisons, literals, slices, `~`) the syntax tree is changed first: each such operand passes through a filter that no
template can name. Source: jinja.palletsprojects.com/en/stable/sandbox

Knows Jinja; nothing about messages or tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import jinja2.nodes as nodes
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .sandbox_budget import (
    BUDGET,
    PASSIVE,
    SizedTurns,
    TooMuchError,
    Turns,
    WorkBudget,
    check_call,
    check_operator,
    made,
    refuse_larger,
    settled,
    size,
    take,
)

LONGEST_TEMPLATE = 200_000  # characters; published ones have 5,000
ENTERED, WEIGHED, MADE = " entered", " weighed", " made"  # the filters that no template can name


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
    BUDGET.get().take_printed(size(value))
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
        token = BUDGET.set(WorkBudget(0))
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
            BUDGET.reset(token)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(map(settled, args))
        if isinstance(__obj, Macro | BlockReference):
            BUDGET.get().take_printed(__self.constant_text)
        elif isinstance(__obj, LoopContext):
            args = tuple(entered(__context, values, __self.constant_text) for values in args)
        elif not any(__obj is function for function in __self.globals.values()):
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
    token = BUDGET.set(WorkBudget())
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
        BUDGET.reset(token)
