"""Writes the commit of a Hub checkpoint into the recipe that names it; every other byte of the file stays.

Knows nothing about downloading: it only asks the Hub for the commit.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from ..errors import RecipeError
from ..hub import COMMIT, resolve_commit
from ..output import whole_file
from . import find_recipe, load_recipe


def pin(path_or_name: str | Path) -> tuple[Path, str, bool]:
    """Pin a recipe to the commit its revision points to.

    Returns:
        The file, the commit, and whether the file changed.

    Raises:
        RecipeError: the recipe is invalid, or its checkpoint is a directory.
        CheckpointError: the commit cannot be resolved.
    """
    file = find_recipe(path_or_name)
    checkpoint = load_recipe(file).checkpoint
    if checkpoint.is_local:
        raise RecipeError(f"{file}: checkpoint.source: {checkpoint.source} is a directory", "There is no commit to pin")
    if COMMIT.fullmatch(checkpoint.revision):
        return file, checkpoint.revision, False
    commit = resolve_commit(checkpoint.source, checkpoint.revision)
    with whole_file(file, hidden=False) as draft:  # a recipe's name may be that of its file, and has no leading dot
        draft.write_text(with_revision(file.read_text("utf-8"), commit), "utf-8")
        if load_recipe(draft).checkpoint.revision != commit:
            raise RecipeError(f"{file}: cannot be edited safely", f"Write checkpoint.revision: {commit} yourself")
    return file, commit, True


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
