"""What a chat template may see, and what it reads: transformers' rules for values, and the names in its source.

As `chat_template_utils.render_jinja_template` of transformers 5.23: values are rebuilt from JSON types, a message's
reasoning has the name that templates read, and two globals of Jinja are replaced by harmless ones.

Knows values and names; renders nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.utils
import numpy as np

PLAIN = (str, int, float, bool, type(None))
REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is the one that templates read


def to_plain(value: Any) -> Any:
    """The value rebuilt from JSON types, so that a template can call nothing; other objects become a type name."""
    if type(value) in PLAIN:
        return value
    for base in (str, int, float):  # subclasses, such as enums
        if isinstance(value, base):
            return getattr(base, f"__{base.__name__}__")(value)
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(to_plain(item) for item in value)
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return to_plain(dump())
    return f"<{type(value).__name__}>"


def name_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its reasoning, under whichever of its names, as `reasoning_content` and `thinking`."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore: those would reach into the object."""

    def __init__(*args: Any, **attributes: Any) -> None:  # as Jinja's own, so that `namespace(self=1)` works
        self, *mappings = args
        attributes = dict(*mappings, **attributes)
        for name in attributes:
            check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace cannot have the name {name}")


class Dictionary:
    """Jinja's `dict`: what a template calls, without the type behind it."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*args, **entries)

    def fromkeys(self, keys: Sequence[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


@dataclasses.dataclass(frozen=True)
class TemplateNames:
    """The names in a template's source."""

    variables: frozenset[str]  # values that must come from outside, such as `tools` and `enable_thinking`
    words: frozenset[str]  # attributes it reads and strings it compares with, such as keys and roles


def read_names(source: str, environment: jinja2.Environment) -> TemplateNames:
    """The names in a template that `environment` can parse."""
    tree = environment.parse(source)
    attributes = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
    strings = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    variables = jinja2.meta.find_undeclared_variables(tree) - environment.globals.keys()
    return TemplateNames(frozenset(variables), frozenset(attributes | strings))
