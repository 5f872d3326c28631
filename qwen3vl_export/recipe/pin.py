"""Writes the commits of a Hub checkpoint and its adapters into the recipe that names them; every other byte stays.

Knows nothing about downloading: it only asks the Hub for the commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..errors import RecipeError
from ..hub import COMMIT, resolve_commit, split_revision
from ..output import whole_file
from . import find_recipe, load_recipe
from .blocks import is_directory


def pin(path_or_name: str | Path) -> tuple[Path, list[str], bool]:
    """Pin a recipe's checkpoint and adapters to the commits their revisions point to.

    Returns:
        The file, each repository as `org/name@commit`, and whether the file changed.

    Raises:
        RecipeError: the recipe is invalid, names only directories, or inherits an adapter that is not pinned.
        CheckpointError: a commit cannot be resolved.
    """
    file = find_recipe(path_or_name)
    recipe = load_recipe(file).checkpoint
    checkpoint = "" if recipe.is_local else at_commit(f"{recipe.source}@{recipe.revision}")
    adapters = {source: source if is_directory(source) else at_commit(source) for source in recipe.adapters}
    pinned = [name for name in (checkpoint, *adapters.values()) if name and not is_directory(name)]
    if not pinned:
        raise RecipeError(f"{file}: checkpoint.source: {recipe.source} is a directory", "There is no commit to pin")
    commit = split_revision(checkpoint)[1]
    if list(adapters) == list(adapters.values()) and (recipe.is_local or recipe.revision == commit):
        return file, pinned, False
    text = with_adapters(file.read_text("utf-8"), adapters)
    with whole_file(file, hidden=False) as draft:  # a recipe's name may be that of its file, and has no leading dot
        draft.write_text(text if recipe.is_local else with_revision(text, commit), "utf-8")
        written = load_recipe(draft).checkpoint
        if written.adapters != tuple(adapters[source] for source in recipe.adapters):
            what = f"{file}: checkpoint.adapters are inherited and name no commit"
            raise RecipeError(what, "Pin the recipe that this one extends, or name the adapters here")
        if not recipe.is_local and written.revision != commit:
            raise RecipeError(f"{file}: cannot be edited safely", f"Write checkpoint.revision: {commit} yourself")
    return file, pinned, True


def at_commit(source: str) -> str:
    """`org/name@revision` with the commit in place of the revision."""
    name, revision = split_revision(source)
    return f"{name}@{revision if COMMIT.fullmatch(revision) else resolve_commit(name, revision)}"


def with_adapters(text: str, pinned: Mapping[str, str]) -> str:
    """The recipe's text with each adapter that it names replaced; comments and layout are preserved."""
    adapters = _child(_child(yaml.compose(text, yaml.SafeLoader), "checkpoint"), "adapters")
    for node in reversed(adapters.value if isinstance(adapters, yaml.SequenceNode) else ()):
        if not is_directory(node.value):
            text = text[: node.start_mark.index] + pinned[node.value] + text[node.end_mark.index :]
    return text


def with_revision(text: str, commit: str) -> str:
    """The recipe's text with `checkpoint.revision` set; comments and layout are preserved."""
    value = f'"{commit}"' if commit.isdigit() else commit  # forty digits would read as a number
    document = yaml.compose(text, yaml.SafeLoader)
    checkpoint = _child(document, "checkpoint")
    if not isinstance(checkpoint, yaml.MappingNode):
        return f"{text.rstrip()}\ncheckpoint:\n  revision: {value}\n"
    revision = _child(checkpoint, "revision")
    if revision is not None:
        return text[: revision.start_mark.index] + value + text[revision.end_mark.index :]
    if not checkpoint.value:
        start = checkpoint.start_mark.index + 1
        return f"{text[:start]}revision: {value}{text[start:]}"
    key, last = checkpoint.value[-1]
    if checkpoint.flow_style:
        end = last.end_mark.index
        return f"{text[:end]}, revision: {value}{text[end:]}"
    end = text.find("\n", last.end_mark.index)
    end = len(text) if end < 0 else end
    return f"{text[:end]}\n{' ' * key.start_mark.column}revision: {value}{text[end:]}"


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value  # type: ignore[no-any-return]
    return None
