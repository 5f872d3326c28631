"""The commands `fleet plan`, `fleet run` and `fleet status`: many recipes, many machines, one store.

Knows the terminal; the work is done in `fleet/`. The parity harness is handed in here, as `verify` finds it in
`cli.py`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..fleet.fleet import Asked

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Build, verify and publish many recipes on many machines, into one store.",
)


class Matrix(StrEnum):
    """How many cases a verification runs."""

    quick = "quick"
    standard = "standard"
    full = "full"


Recipes = Annotated[list[str], typer.Argument(metavar="RECIPES...", help="Recipe files, or names of shipped ones.")]
StoreUrl = Annotated[
    str, typer.Option("--store", metavar="URL", help="Where results are kept: a directory, s3://…, gs://…, hf://….")
]
MatrixChoice = Annotated[Matrix | None, typer.Option(help="How many cases; each recipe's choice unless said.")]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="tcp://HOST:PORT", help="A dask scheduler; a cluster on this machine unless said."),
]
Publish = Annotated[
    str | None,
    typer.Option(metavar="DIR|hf://ORG", help="Publish what passed, under the recipe's name or where {name} stands."),
]
LogFile = Annotated[Path | None, typer.Option("--log", metavar="FILE", help="Append every event to it, as JSON lines.")]
Scratch = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where this machine's workers build; the system's temp unless said.")
]
Patience = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, help="How long a store, scheduler or worker that went away is awaited."),
]


@app.command()
def plan(
    recipes: Recipes,
    store: StoreUrl,
    matrix: MatrixChoice = None,
    scheduler: Scheduler = None,
    publish: Publish = None,
    scratch: Scratch = None,
    patience: Patience = 120.0,
) -> None:
    """Say what there is to do, in how many bytes, how much memory and time. Estimates are kept in the store.

    Example: `qwen3vl-export fleet plan tiny tiny-int8 --store /srv/zoo`
    """
    from ..fleet.fleet import plan as plan_fleet
    from ..fleet.plan_table import show

    asked = _asked(recipes, store, matrix, scheduler, publish, None, scratch, patience)
    show(plan_fleet(asked))


@app.command()
def run(
    recipes: Recipes,
    store: StoreUrl,
    matrix: MatrixChoice = None,
    scheduler: Scheduler = None,
    publish: Publish = None,
    log: LogFile = None,
    scratch: Scratch = None,
    patience: Patience = 120.0,
) -> None:
    """Build and verify every recipe; what is in the store is not made again. Writes zoo.html over the store.

    Ends with 0 if everything is there and passed, 1 if not.

    Example: `qwen3vl-export fleet run tiny tiny-int8 tiny-int4 --store /srv/zoo`

    Example: `qwen3vl-export fleet run recipes/*.yaml --store s3://bucket/zoo --scheduler tcp://head:8786 --matrix full`
    """
    from ..fleet.account import show
    from ..fleet.fleet import run as run_fleet

    asked = _asked(recipes, store, matrix, scheduler, publish, log, scratch, patience)
    found = run_fleet(asked)
    show(found, _again(asked))
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


@app.command()
def status(
    recipes: Recipes,
    store: StoreUrl,
    matrix: MatrixChoice = None,
    publish: Publish = None,
    patience: Patience = 120.0,
) -> None:
    """Say what is there, what failed and how to make the rest. Ends with 0 if everything is there and passed.

    Example: `qwen3vl-export fleet status tiny tiny-int8 --store /srv/zoo`
    """
    from ..fleet.account import show
    from ..fleet.fleet import status as status_of

    asked = _asked(recipes, store, matrix, None, publish, None, None, patience)
    found = status_of(asked)
    show(found, _again(asked))
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


def _asked(
    recipes: list[str],
    store: str,
    matrix: Matrix | None,
    scheduler: str | None,
    publish: str | None,
    log: Path | None,
    scratch: Path | None,
    patience: float,
) -> Asked:
    from parity_tests.harness import shards

    from ..fleet.fleet import Asked
    from ..fleet.harness import Harness

    harness = Harness(shards.units, shards.verify_part, shards.merge_parts, shards.forget, shards.version)
    tier = matrix.value if matrix else None
    return Asked(recipes, store, harness, scheduler, tier, publish, log, scratch, patience)


def _again(asked: Asked) -> list[str]:
    """The command that goes on; `{recipes}` stands for its recipes."""
    said = {
        "--store": asked.store_url,
        "--matrix": asked.matrix,
        "--scheduler": asked.scheduler,
        "--publish": asked.target,
    }
    options = [word for name, value in said.items() if value is not None for word in (name, value)]
    return ["qwen3vl-export", "fleet", "run", "{recipes}", *options]
