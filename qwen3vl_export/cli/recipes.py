"""The `recipes` commands: list, show, check, schema, pin.

Knows nothing about building. Recipes are read with pydantic, which takes longer to import than `run` to start, so it is
imported when a command is called.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import console, print_error, say, table, write, write_json
from ..errors import Qwen3VLExportError, RecipeError
from .paths import expand

if TYPE_CHECKING:
    from ..recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List, show, check and pin recipes: the YAML files that describe builds.",
)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="NAME", help="The recipe in this precision (see: recipes list); short for RECIPE-NAME."
    ),
]


@app.command("list")
def list_() -> None:
    """List the recipes that can be built by name, and the precisions that each can be built in.

    Example: `qwen3vl-export recipes list`
    """
    from ..recipe import list_precisions, list_recipes, load_recipe

    rows = []
    for name, file in list_recipes().items():
        try:
            recipe = load_recipe(file)
        except RecipeError as error:
            rows.append((name, "", "", "", f"cannot be read: {error}"))
            continue
        rows.append((name, _sizes(recipe), recipe.target, recipe.dtype, recipe.description))
    if not rows:
        raise RecipeError("no recipes in ./recipes", "Run this in the directory that contains recipes/")
    rows.sort(key=lambda row: _natural(row[0]))
    console().print(table("", ("recipe", "sizes", "target", "dtype", "description"), rows, wrap="description"))
    precisions = [(name, _described(file)) for name, file in list_precisions().items()]
    console().print(table("", ("precision", "description"), precisions, wrap="description"))
    say("Build one: qwen3vl-export build tiny, or in another precision: qwen3vl-export build tiny --precision int8")


@app.command()
def show(
    recipe: RecipeName,
    precision: PrecisionName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Show a recipe as it will be built, with inheritance resolved and every default filled in.

    Example: `qwen3vl-export recipes show tiny-buckets`

    Example: `qwen3vl-export recipes show qwen3-vl-8b-instruct --precision int4`
    """
    import yaml

    from ..recipe import in_precision, load_recipe

    values = load_recipe(recipe if precision is None else in_precision(recipe, precision)).to_json_dict()
    if as_json:
        write_json(values, indent=1)
    else:
        write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None))


@app.command()
def check(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE", help="Recipes to check. [default: every shipped recipe]"),
    ] = None,
) -> None:
    """Check recipes without building: keys, types, combinations.

    Exits with 0 if all are valid, otherwise with 2.

    Example: `qwen3vl-export recipes check recipes/mine.yaml`
    """
    from ..recipe import find_recipe, list_recipes, load_recipe

    names = recipes or [str(file) for file in list_recipes().values()]
    if not names:
        raise RecipeError("no recipes in ./recipes", "Name one: qwen3vl-export recipes check FILE")
    invalid = 0
    for name in names:
        try:
            load_recipe(name)
            say(f"ok     {find_recipe(name)}")
        except Qwen3VLExportError as error:
            invalid += 1
            print_error(str(error))
    if invalid:
        raise typer.Exit(RecipeError.exit_code)


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option(parser=expand, metavar="FILE", help="Write to this file instead of standard output.")
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, with which editors complete and check YAML.

    Example: `qwen3vl-export recipes schema --out recipes/recipe.schema.json`
    """
    from ..recipe import recipe_schema

    values = recipe_schema()
    text = json.dumps(values, indent=2, ensure_ascii=False)
    if out is None:
        write(text + "\n")
    else:
        if os.path.lexists(out) and not is_schema(out, values["title"]):
            raise RecipeError(f"{out}: already exists and is no schema of recipes", "Choose another name")
        out.write_text(text + "\n", "utf-8")
        say(f"{out} written")


def is_schema(file: Path, title: str) -> bool:
    """Whether a file is an earlier version of the schema of this title."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("title") == title


@app.command()
def pin(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE", help="Recipes whose checkpoint or adapters are on the Hub.")
    ],
) -> None:
    """Replace the revisions of a checkpoint and its adapters with their commits, so that builds are reproducible.

    Example: `qwen3vl-export recipes pin qwen3-vl-2b-instruct`
    """
    from ..recipe.pin import pin as pin_recipe

    for name in recipes:
        file, repositories, changed = pin_recipe(name)
        say(f"{file}: {'pinned to' if changed else 'already pinned to'} {', '.join(repositories)}")


def _described(file: Path) -> str:
    """What the file of a precision says of it, or why it cannot be read."""
    from ..recipe.yaml import read_merged

    try:
        return str(read_merged(file).data.get("description", ""))
    except RecipeError as error:
        return f"cannot be read: {error}"


def _natural(name: str) -> tuple[object, ...]:
    """Sort key: the tiny recipes first, then by number, so that 8b comes before 30b."""
    return (
        not name.startswith("tiny"),
        *((int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)),
    )


def _sizes(recipe: Recipe) -> str:
    if recipe.vision.grid == "dynamic":
        return "any"
    if recipe.vision.grid == "fixed":
        return "x".join(str(side) for side in recipe.vision.sizes[0])
    return f"{len(recipe.vision.sizes)} buckets"
