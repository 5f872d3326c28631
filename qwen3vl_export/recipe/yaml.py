"""Reads recipe files: YAML with duplicate keys refused, `extends:` followed and merged.

The result is plain data and the file each key came from, so that a mistake is reported where it was written. Knows
nothing about the keys of a recipe, except which are not inherited (`name`, `description`), which name directories, and
that a checkpoint's revision belongs to its source.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError, first_line
from ..output import is_file_name

EXTENDS = "extends"
NOT_INHERITED = ("name", "description")  # identify one file
DIRECTORY_BLOCKS = ("checkpoint", "calibration")  # whose `source` may be a directory, relative to the file
METHOD = "method"  # a block that names one inherits nothing: the settings of another method mean nothing to it
LARGEST_FILE = 200_000  # bytes; shipped recipes have at most 2,000
MOST_VALUES = 20_000  # in a recipe
INTEGER_BITS = 63  # Python does not even print integers of some thousand digits
LONGEST_CHAIN = 20  # recipes that extend one another
KeyPath = tuple[str, ...]


@dataclass
class MergedRecipe:
    """A recipe's data, merged with those it extends.

    Attributes:
        files: the recipe and those it extends, base first.
        origins: key path -> the file that set it.
    """

    file: Path
    data: dict[str, Any]
    files: tuple[Path, ...] = ()
    origins: dict[KeyPath, Path] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Path:
        """The file that set the key, or its closest parent that is set."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, self.file)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and what aliases repeat without end, and keeps dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - SafeLoader declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            count_nodes(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
                raise OverflowError
            return value
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):  # `!!int x`, `!!bool x`
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"not a value of type {kind}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "not a mapping", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value == "<<":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def count_nodes(node: yaml.Node) -> int:
    """How many values a node stands for, each alias counted as what it repeats.

    Raises:
        ConstructorError: they are too many, a value contains itself, or a text has half a surrogate pair.
    """
    counts: dict[int, int] = {}  # of nodes that were counted whole
    path = [(node, _children(node))]
    sums = {id(node): 1}  # of the nodes on the path
    while path:
        parent, children = path[-1]
        child = next(children, None)
        if child is None:
            path.pop()
            counts[id(parent)] = count = sums.pop(id(parent))
            if not path:
                return count
            parent = path[-1][0]
        elif id(child) in sums:
            raise yaml.constructor.ConstructorError(None, None, "a value contains itself", parent.start_mark)
        elif id(child) in counts:
            count = counts[id(child)]
        else:
            path.append((child, _children(child)))
            sums[id(child)] = 1
            continue
        sums[id(parent)] += count
        if sums[id(parent)] > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"over {MOST_VALUES} values", parent.start_mark)
    return 0


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes in a node; of a text, which has none, the characters are checked."""
    if isinstance(node, yaml.ScalarNode):
        if not is_encodable(node.value):
            raise yaml.constructor.ConstructorError(None, None, "half a surrogate pair", node.start_mark)
        return
    for entry in node.value:
        yield from entry if isinstance(entry, tuple) else (entry,)


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_merged(file: Path, children: tuple[Path, ...] = ()) -> MergedRecipe:
    """Read a recipe and the chain of recipes it extends, base first.

    Args:
        children: the files that extend this one.

    Raises:
        RecipeError: a file that is missing or not a YAML mapping, or files that extend each other in a circle.
    """
    data = read_mapping(file)
    chain = (*children, file)
    base = data.pop(EXTENDS, None)
    if base is None:
        merged = MergedRecipe(file, {})
    else:
        if not isinstance(base, str):
            raise RecipeError(f"{file}: {EXTENDS}: must be a file name", "Write extends: tiny.yaml")
        if not is_file_name(str(file.parent / base)):
            raise RecipeError(f"{file}: {EXTENDS}: is not the name of a file", "Write extends: tiny.yaml")
        if len(chain) > LONGEST_CHAIN:
            raise RecipeError(
                f"{file}: {EXTENDS}: over {LONGEST_CHAIN} recipes one on another", "Extend an earlier one"
            )
        parent = Path(os.path.normpath(file.parent / base))
        if any(parent.resolve() == path.resolve() for path in chain):
            circle = " extends ".join(path.name for path in (*chain, parent))
            raise RecipeError(f"{file}: {EXTENDS}: goes in a circle: {circle}", "Remove extends: from one of them")
        if not os.path.isfile(parent):
            raise RecipeError(f"{file}: {EXTENDS}: no such file: {parent}", "The path is relative to this recipe")
        merged = read_merged(parent, chain)
        merged.file = file
        for key in NOT_INHERITED:
            merged.data.pop(key, None)
        _rebase_sources(merged.data, parent.parent, file.parent)
    merged.files += (file,)
    checkpoint = data.get("checkpoint")
    if isinstance(checkpoint, dict) and "source" in checkpoint:
        merged.data.pop("checkpoint", None)
    merged.data = merge_mappings(merged.data, data)
    merged.origins.update(dict.fromkeys(_paths(data), file))
    return merged


def read_mapping(file: Path) -> dict[str, Any]:
    """One file's YAML mapping.

    Raises:
        RecipeError: unreadable, not UTF-8, a syntax error (with its line), a duplicate key, or not a mapping.
    """
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise RecipeError(f"{file}: over {LARGEST_FILE} bytes", "Name a recipe (*.yaml)")
        data = yaml.load(file.read_text("utf-8"), _Loader)
    except UnicodeDecodeError:
        raise RecipeError(f"{file}: not a text file in UTF-8", "Name a recipe (*.yaml)") from None
    except OSError as error:
        raise RecipeError(f"{file}: {(error.strerror or str(error)).lower()}", "Name a readable recipe") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise RecipeError(f"{where}: {error.problem or error.context}", "Correct this line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file}: not YAML ({first_line(error)})", "Name a recipe (*.yaml)") from None
    if data is None:
        raise RecipeError(f"{file}: is empty", "Start with: extends: tiny.yaml")
    if not isinstance(data, dict):
        raise RecipeError(f"{file}: must be a mapping of keys to values", "Start with: extends: tiny.yaml")
    for key in data:
        if not isinstance(key, str):
            raise RecipeError(f"{file}: {key}: unknown key", "Keys are words; see docs/recipes.md")
    return data


def merge_mappings(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key, unless `override` names a method; replace anything else, lists included."""
    result = {} if METHOD in override else dict(base)
    for key, value in override.items():
        inherited = result.get(key)
        result[key] = (
            merge_mappings(inherited, value) if isinstance(inherited, dict) and isinstance(value, dict) else value
        )
    return result


def _rebase_sources(data: dict[str, Any], old: Path, new: Path) -> None:
    """Keep relative directories pointing at the same place when a recipe in another directory inherits them."""

    def rebase(source: Any) -> Any:
        if not isinstance(source, str) or not source.startswith("."):
            return source
        relative = Path(os.path.relpath(old / source, new)).as_posix()
        return relative if relative.startswith(".") else f"./{relative}"

    for key in DIRECTORY_BLOCKS:
        block = data.get(key)
        if isinstance(block, dict):
            adapters = block.get("adapters")
            sources = {"source": rebase(block["source"])} if "source" in block else {}
            lists = {"adapters": [rebase(adapter) for adapter in adapters]} if isinstance(adapters, list) else {}
            data[key] = {**block, **sources, **lists}


def _paths(data: dict[str, Any], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in data.items():
        yield (*parent, str(key))
        if isinstance(value, dict):
            yield from _paths(value, (*parent, str(key)))
