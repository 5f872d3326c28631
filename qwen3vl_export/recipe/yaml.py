"""Reads recipe files: YAML with duplicate keys refused, `extends:` followed and merged.

The result is plain data plus the file each key came from, so that a mistake is reported where it was written. Knows
nothing about which keys a recipe may have, except those that are not inherited (`name`, `description`), those that
name directories, and that a checkpoint's revision belongs to its source.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError, first_line

EXTENDS = "extends"
OWN_KEYS = ("name", "description")  # say what this very file is, so a child never inherits them
SOURCES = ("checkpoint", "calibration")  # blocks whose `source` may be a directory, relative to the file
METHOD = "method"  # a block that names one starts afresh: the settings of another method mean nothing to it
KeyPath = tuple[str, ...]


@dataclass
class Layers:
    """A recipe's merged data.

    Attributes:
        files: the recipe and those it extends, base first.
        origins: key path -> the file that set it.
    """

    file: Path
    data: dict[str, Any]
    files: tuple[Path, ...] = ()
    origins: dict[KeyPath, Path] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Path:
        """The file that wrote the key, or its closest parent."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, self.file)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and leaves dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - SafeLoader declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
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


def read_layers(file: Path, children: tuple[Path, ...] = ()) -> Layers:
    """Read a recipe and the chain it extends, base first.

    Raises:
        RecipeError: a file that is missing or no YAML mapping, or files that extend each other in a circle.
    """
    data = read_mapping(file)
    chain = (*children, file)
    base = data.pop(EXTENDS, None)
    if base is None:
        layers = Layers(file, {})
    else:
        if not isinstance(base, str):
            raise RecipeError(f"{file}: {EXTENDS}: must be a file name", "Write extends: tiny.yaml")
        parent = Path(os.path.normpath(file.parent / base))
        if any(parent.resolve() == one.resolve() for one in chain):
            circle = " extends ".join(one.name for one in (*chain, parent))
            raise RecipeError(f"{file}: {EXTENDS}: goes in a circle: {circle}", "Let one of them extend nothing")
        if not parent.is_file():
            raise RecipeError(f"{file}: {EXTENDS}: no such file: {parent}", "The path is relative to this recipe")
        layers = read_layers(parent, chain)
        layers.file = file
        for key in OWN_KEYS:
            layers.data.pop(key, None)
        _move_source(layers.data, parent.parent, file.parent)
    layers.files += (file,)
    checkpoint = data.get("checkpoint")
    if isinstance(checkpoint, dict) and "source" in checkpoint:
        layers.data.pop("checkpoint", None)
    layers.data = _merge(layers.data, data)
    layers.origins.update(dict.fromkeys(_paths(data), file))
    return layers


def read_mapping(file: Path) -> dict[str, Any]:
    """One file's YAML mapping.

    Raises:
        RecipeError: not readable, not UTF-8, a syntax error (with its line), a duplicate key, not a mapping.
    """
    try:
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


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, unless the upper one names a method; anything else, lists included, is replaced."""
    merged = {} if METHOD in over else dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _move_source(data: dict[str, Any], written_in: Path, read_from: Path) -> None:
    """Keep relative directories pointing at the same place when a recipe elsewhere inherits them."""
    for key in SOURCES:
        block = data.get(key)
        source = block.get("source") if isinstance(block, dict) else None
        if isinstance(block, dict) and isinstance(source, str) and source.startswith("."):
            moved = Path(os.path.relpath(written_in / source, read_from)).as_posix()
            data[key] = {**block, "source": moved if moved.startswith(".") else f"./{moved}"}


def _paths(data: dict[str, Any], parent: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in data.items():
        yield (*parent, str(key))
        if isinstance(value, dict):
            yield from _paths(value, (*parent, str(key)))
