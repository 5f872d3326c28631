"""Loads recipes: a YAML file or its name becomes a valid `Recipe`, or one line that says what to correct.

`recipe/yaml.py` reads files, `recipe/model.py` defines their keys; this module combines the two and words the error
messages. Knows nothing about building.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..contract import TEXT
from ..errors import RecipeError
from ..json_form import shown
from ..output import is_file_name
from ..packaging import loadable_runtimes
from .blocks import GRAPH_NAMES as GRAPH_NAMES
from .blocks import SIZE_STEP, PrecisionName
from .model import Recipe as Recipe
from .precisions import precision_files, precisions_of, split_name, use_precision
from .quantize import CACHE_METHODS, METHODS, profile_of
from .strict import FieldConflict
from .yaml import EXTENDS, MergedRecipe, read_merged

SUFFIXES = (".yaml", ".yml")
_EXPECTED = {
    "string_type": 'text: write it in "quotes"',
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list: write it in [brackets]",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_LOOKS_LIKE = {
    "name": "up to 100 lower-case letters, digits, dots and dashes",
    "min_onnxruntime": "a version such as 1.23.0",
    "source": "a directory such as ./checkpoint, or a repository such as Qwen/Qwen3-VL-2B-Instruct",
    "revision": "a branch, a tag or a commit",
}


def recipe_dirs() -> list[Path]:
    """Where recipes are looked up by name: ./recipes, then those in the source tree or installed with the package."""
    local, source_tree = Path("recipes"), Path(__file__).resolve().parents[2] / "recipes"
    installed = Path(sys.prefix) / "share" / "qwen3vl-export" / "recipes"
    candidates = [local, installed] if local.resolve() == source_tree else [local, source_tree, installed]
    return [path for path in candidates if path.is_dir()]


def find_recorded(source: str) -> Path | None:
    """The directory of a local checkpoint that a manifest names: beside the recipes, else in the current directory."""
    return next((base / source for base in (*recipe_dirs(), Path()) if os.path.isdir(base / source)), None)


def list_recipes() -> dict[str, Path]:
    """Every recipe that can be loaded by name, by name; the first directory wins."""
    recipes: dict[str, Path] = {}
    for directory in recipe_dirs():
        for file in sorted(directory.iterdir()):
            if file.suffix in SUFFIXES and file.is_file():
                recipes.setdefault(file.stem, file)
    return recipes


def list_precisions() -> dict[str, Path]:
    """The file of every precision that any recipe can be built in, by name; the first directory wins."""
    return precision_files(recipe_dirs())


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe given as a path or by name, in whatever precision.

    Raises:
        RecipeError: no such file or name; similar ones are suggested.
    """
    return _locate(path_or_name)[0]


def in_precision(path_or_name: str | Path, precision: str) -> str:
    """What a recipe is called in a precision: `tiny-int4`, `recipes/mine-int4.yaml`.

    Raises:
        RecipeError: no such recipe, or it has no such precision.
    """
    file, path = find_recipe(path_or_name), Path(path_or_name)
    is_path = path.is_file() or path.suffix in SUFFIXES
    named = str(path.with_name(f"{path.stem}-{precision}{path.suffix}")) if is_path else f"{path}-{precision}"
    try:
        _locate(named)
    except RecipeError:
        known = [*precisions_of(read_merged(file)), *list_precisions()]
        advice = _did_you_mean(precision, known) or f"Precisions: {', '.join(known)}"
        raise RecipeError(f"{path_or_name}: has no precision {precision}", advice) from None
    return named


def _locate(path_or_name: str | Path) -> tuple[Path, str]:
    """The file of a recipe and the precision that its name adds; "" for none."""
    path = Path(path_or_name)
    if not is_file_name(str(path)):
        raise RecipeError(f"{shown(str(path))}: is not the name of a file", "See: recipes list")
    if path.is_file():
        return path, ""
    by_name = path.name == str(path_or_name) and path.suffix not in SUFFIXES
    known = list_recipes() if by_name else {}  # before directories: one may have a recipe's name, as an artifact does
    if path.name in known:
        return known[path.name], ""
    for base, precision in split_name(path.name):
        if base in known and _has_precision(known[base], precision):
            return known[base], precision
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory", "Name a recipe file, or see: recipes list")
    if by_name:
        names = [*known, *(f"{name}-{precision}" for name in known for precision in list_precisions())]
        raise RecipeError(f"{path}: no recipe of that name", _did_you_mean(path.name, names) or "See: recipes list")
    for base, precision in split_name(path.stem):
        file = path.with_name(base + path.suffix)
        if file.is_file() and _has_precision(file, precision):
            return file, precision
    siblings = {str(path.parent / file.name) for file in path.parent.glob("*.y*ml")}
    raise RecipeError(f"{path}: no such recipe", _did_you_mean(str(path), siblings) or "See: recipes list")


def _has_precision(file: Path, precision: str) -> bool:
    return precision in list_precisions() or precision in precisions_of(read_merged(file))


def load_recipe(path_or_name: str | Path) -> Recipe:
    """Load and check a recipe: `tiny` or `recipes/tiny.yaml`; in a precision, `tiny-web` or `recipes/tiny-web.yaml`.

    Raises:
        RecipeError: it cannot be found or read, or has an unknown key, a value of the wrong type, or a conflict.
    """
    file, precision = _locate(path_or_name)
    merged = read_merged(file)
    if precision:
        use_precision(merged, precision, list_precisions().get(precision))
    _fill_in_defaults(merged)
    try:
        recipe = Recipe.model_validate_json(json.dumps(merged.data))
    except ValidationError as error:
        raise _first_mistake(merged, error) from None
    except (TypeError, ValueError, RecursionError):
        raise RecipeError(f"{merged.file}: holds a value that is not plain text, number or list") from None
    recipe._directory, recipe._files = merged.file.parent, merged.files
    source = recipe.checkpoint.source
    if not recipe.checkpoint.is_local and os.path.isdir(merged.file.parent / source):  # False if too long
        raise RecipeError(
            f"{merged.origin(('checkpoint', 'source'))}: checkpoint.source: {source} names a Hub repository, but "
            "there is a directory of that name beside the recipe",
            f"Write ./{source} for the directory",
        )
    return recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors; every key is optional there because `extends:` may supply it."""
    schema = Recipe.model_json_schema()
    schema["title"] = "Qwen3-VL export recipe"
    schema["properties"] = {
        EXTENDS: {"type": "string", "description": "Recipe to start from, relative to this file."},
        **schema["properties"],
    }
    for model in (schema, *schema["$defs"].values()):
        model.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _fill_in_defaults(merged: MergedRecipe) -> None:
    """Fill in defaults that depend on the file or on another key."""
    merged.data.setdefault("name", merged.file.stem)
    parity = merged.data.setdefault("parity", {})
    if isinstance(parity, dict):
        merged.data["parity"] = {"tolerances": profile_of(merged.data), **parity}
    precisions = merged.data.get("precisions")
    if isinstance(precisions, dict):
        for name, block in precisions.items():
            if isinstance(block, dict):
                precisions[name] = {"tolerances": profile_of(block), **block}
    packaging = merged.data.setdefault("packaging", {})
    vision, graphs = merged.data.get("vision", {}), merged.data.get("graphs", list(GRAPH_NAMES))
    if isinstance(packaging, dict) and isinstance(vision, dict) and isinstance(graphs, list):
        grid, head = str(vision.get("grid", "dynamic")), str(merged.data.get("head") or TEXT)
        runtimes = loadable_runtimes([str(graph) for graph in graphs], grid, head)
        merged.data["packaging"] = {"runtimes": list(runtimes), **packaging}


def _first_mistake(merged: MergedRecipe, error: ValidationError) -> RecipeError:
    """One line for the first mistake, misspelt keys before the missing ones they explain, and a count of the rest."""
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    first = mistakes[0]
    context = first.get("ctx", {})
    path, problem, advice = _describe(first["type"], tuple(first["loc"]), first["input"], context, first["msg"])
    if len(mistakes) > 1:
        advice = f"{advice} ({len(mistakes) - 1} more mistake{'s' if len(mistakes) > 2 else ''})".lstrip()
    is_conflict = isinstance(context.get("error"), FieldConflict)  # its fields may come from several files
    path = _without_method(path)
    file = merged.file if is_conflict else merged.origin(tuple(str(key) for key in path))
    return RecipeError(f"{file}: {_dotted(path)}: {problem}", advice)


def _describe(
    kind: str, path: tuple[int | str, ...], value: Any, context: Mapping[str, Any], message: str
) -> tuple[tuple[int | str, ...], str, str]:
    """Key path, problem and advice for one of pydantic's error records."""
    cause = context.get("error")
    if isinstance(cause, FieldConflict):
        return (*path, *cause.key.split(".")), cause.problem, cause.advice
    if kind == "extra_forbidden":
        known = _keys_at(path[:-1])
        return path, "unknown key", _did_you_mean(str(path[-1]), known) or f"Known keys: {', '.join(known)}"
    if kind == "missing" and isinstance(path[-1], str):
        return path, "is missing", "Add it, or inherit it with extends:"
    if kind in ("missing", "too_long") and "sizes" in path:
        return path[:3], "a size is [height, width]", "Write sizes: [[384, 384]]"
    if kind == "union_tag_not_found":
        methods = _methods_at(path)
        known = sorted({name for model in methods.values() for name in model.model_fields})
        for key in value if isinstance(value, dict) else ():
            if key not in known:
                return (*path, key), "unknown key", _did_you_mean(key, known) or f"Known keys: {', '.join(known)}"
        return (*path, "method"), "is missing", f"One of {', '.join(methods)}"
    if kind == "union_tag_invalid":
        tag, methods = str(context["tag"]), _methods_at(path)
        return (*path, "method"), f"{_quote(tag)} is not one of {', '.join(methods)}", _did_you_mean(tag, methods)
    if path[-1:] == ("[key]",):  # pydantic's way of saying that the key itself is wrong
        names = get_args(PrecisionName)
        return (
            path[:-1],
            "unknown precision",
            _did_you_mean(str(value), names) or f"Known precisions: {', '.join(names)}",
        )
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return path, f"{_quote(value)} is not one of {', '.join(choices)}", _did_you_mean(str(value), choices)
    if kind == "multiple_of":
        lower = int(value) // SIZE_STEP * SIZE_STEP
        near = [str(size) for size in (lower, lower + SIZE_STEP) if size > 0]
        return path, f"{value} is not a multiple of {SIZE_STEP}", f"Use {' or '.join(near)}"
    if kind == "string_pattern_mismatch":
        key = next(str(part) for part in reversed(path) if isinstance(part, str))
        return path, f"found {_quote(value)}", f"It must be {_LOOKS_LIKE.get(key, _LOOKS_LIKE['source'])}"
    if kind in _EXPECTED:
        return path, f"found {_quote(value)}", f"It must be {_EXPECTED[kind]}"
    return path, f"found {_quote(value)}", message.replace("Input", "It").replace("String", "It").replace("Tuple", "It")


def _keys_at(path: Iterable[int | str]) -> list[str]:
    """The keys a recipe knows at a key path."""
    model: type[BaseModel] = Recipe
    methods = _methods_at(path := tuple(path))
    for key in path:
        if model is not Recipe and key in methods:  # pydantic inserts the method of the block
            model = methods[str(key)]
            continue
        if str(key) not in model.model_fields:  # a name in a mapping
            continue
        annotation = model.model_fields[str(key)].annotation
        options = (annotation, *get_args(annotation))
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return [EXTENDS, *model.model_fields] if model is Recipe else list(model.model_fields)


def _methods_at(path: tuple[int | str, ...]) -> Mapping[str, type[BaseModel]]:
    """The methods that a block of `quantization` chooses from; those of weights anywhere else."""
    return CACHE_METHODS if ("quantization", "cache") in pairwise(path) else METHODS


def _without_method(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A key path as written in the file: without the method that pydantic inserts after a graph of `quantization`."""
    if "quantization" not in path:
        return path
    method = path.index("quantization") + 2
    return (*path[:method], *path[method + 1 :]) if len(path) > method and path[method] in _methods_at(path) else path


def _dotted(path: Iterable[int | str]) -> str:
    """`("vision", "sizes", 0, 1)` reads `vision.sizes[0][1]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _quote(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else ""
