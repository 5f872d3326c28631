"""The precisions that any recipe can be built in: files under `precisions/`, each laid over the recipe.

A precision says how weights are stored and computed with, and nothing else. `NAME-PRECISION` is the recipe NAME in that
precision, unless a file has this very name. Knows which keys a precision sets; nothing about their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .yaml import MergedRecipe, merge_mappings, read_merged

FOLDER = "precisions"  # in every directory of recipes
REPLACED = ("dtype", "quantization", "experts", "precisions")  # a precision is complete: it inherits none of these
KEYS = (*REPLACED, "description", "parity", "packaging", "min_onnxruntime")


def precision_files(directories: Iterable[Path]) -> dict[str, Path]:
    """The files of all precisions in these directories of recipes, by name; the first directory wins."""
    files: dict[str, Path] = {}
    for directory in directories:
        for file in sorted((directory / FOLDER).glob("*.yaml"), key=lambda file: file.stem):
            files.setdefault(file.stem, file)
    return files


def split_name(name: str) -> Iterator[tuple[str, str]]:
    """Every way to read a name as `NAME-PRECISION`, the shortest precision first."""
    words = name.split("-")
    for index in range(len(words) - 1, 0, -1):
        yield "-".join(words[:index]), "-".join(words[index:])


def precisions_of(merged: MergedRecipe) -> dict[str, dict[str, Any]]:
    """The further precisions that a recipe itself describes (plain data, not validated)."""
    blocks = merged.data.get("precisions")
    return (
        {name: block for name, block in blocks.items() if isinstance(block, dict)} if isinstance(blocks, dict) else {}
    )


def use_precision(merged: MergedRecipe, precision: str, file: Path | None) -> None:
    """Put a recipe into a precision: one that it describes itself, else the one of a file.

    Args:
        merged: changed in place.

    Raises:
        RecipeError: the file cannot be read, or sets what is not a precision's to set.
    """
    block = precisions_of(merged).get(precision)
    if block is not None:
        origin = merged.origin(("precisions", precision))
        layer = MergedRecipe(origin, {key: value for key, value in block.items() if key in REPLACED})
        if "tolerances" in block:
            layer.data["parity"] = {"tolerances": block["tolerances"]}
    else:
        assert file is not None
        layer = read_merged(file)
        if strangers := [key for key in layer.data if key not in KEYS]:
            raise RecipeError(
                f"{layer.origin((strangers[0],))}: {strangers[0]}: not a key of a precision",
                f"Move it into the recipe; a precision has {', '.join(KEYS)}",
            )
    for key in REPLACED:
        merged.data.pop(key, None)
    parity = merged.data.get("parity")
    if isinstance(parity, dict):
        merged.data["parity"] = {key: value for key, value in parity.items() if key != "tolerances"}
    description = layer.data.pop("description", precision)
    inherited = merged.data.get("description")
    merged.data = merge_mappings(merged.data, layer.data)
    merged.data["name"] = f"{merged.data.get('name', merged.file.stem)}-{precision}"
    merged.data["description"] = f"{inherited}, {description}" if inherited else description
    merged.origins |= layer.origins or dict.fromkeys([(key,) for key in layer.data], layer.file)
    merged.files += layer.files
