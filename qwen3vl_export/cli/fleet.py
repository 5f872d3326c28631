"""The commands `fleet plan`, `fleet run` and `fleet status`: many recipes, many machines, one store.

Knows the terminal; the work is done in `fleet/`, to which the parity harness is passed from here.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .paths import expand

if TYPE_CHECKING:
    from ..fleet.fleet import FleetOptions

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Build, verify and publish many recipes on many machines; all results go to one store.",
)


class Matrix(StrEnum):
    """How many cases a verification runs."""

    quick = "quick"
    release = "release"
    standard = "standard"
    full = "full"


Recipes = Annotated[list[str], typer.Argument(metavar="RECIPE", help="Recipe files, or names of shipped recipes.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision", metavar="NAME", help="Every recipe in this precision (see: recipes list); can be repeated."
    ),
]
StoreUrl = Annotated[
    str, typer.Option("--store", metavar="URL", help="Where results are stored: a directory, s3://…, gs://…, hf://….")
]
MatrixChoice = Annotated[
    Matrix | None, typer.Option(help="How many cases each verification runs. [default: as each recipe says]")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:PORT", help="Address of a dask scheduler. [default: a local cluster on this machine]"
    ),
]
Publish = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|hf://ORG",
        help="Publish what passed as DIR/RECIPE or hf://ORG/RECIPE, or replace {name} by RECIPE.",
    ),
]
LogFile = Annotated[
    Path | None, typer.Option("--log", parser=expand, metavar="FILE", help="Append events to FILE as JSON lines.")
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        parser=expand,
        metavar="DIR",
        help="Where this machine's workers build. [default: the system's temporary directory]",
    ),
]
Patience = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, help="How long to wait for an unreachable store, scheduler or worker."),
]


@app.command()
def plan(
    recipes: Recipes,
    store: StoreUrl,
    precision: Precisions = None,
    matrix: MatrixChoice = None,
    scheduler: Scheduler = None,
    publish: Publish = None,
    scratch: Scratch = None,
    patience: Patience = 120.0,
) -> None:
    """Show what a run would do, with estimates of disk space, memory and time, which are saved in the store.

    Example: `qwen3vl-export fleet plan tiny tiny-int8 --store /srv/zoo`
    """
    from ..fleet.fleet import plan as plan_fleet
    from ..fleet.plan_table import show

    options = _options(in_precisions(recipes, precision), store, matrix, scheduler, publish, None, scratch, patience)
    show(plan_fleet(options))


@app.command()
def run(
    recipes: Recipes,
    store: StoreUrl,
    precision: Precisions = None,
    matrix: MatrixChoice = None,
    scheduler: Scheduler = None,
    publish: Publish = None,
    log: LogFile = None,
    scratch: Scratch = None,
    patience: Patience = 120.0,
) -> None:
    """Build and verify every recipe; results already in the store are reused. Writes an overview, zoo.html.

    Exits with 0 if every result exists and passed, otherwise with 1.

    Example: `qwen3vl-export fleet run tiny tiny-int8 tiny-int4 --store /srv/zoo`

    Example: `qwen3vl-export fleet run qwen3-vl-2b-instruct --precision bf16 --precision int4 --store /srv/zoo`

    Example: `qwen3vl-export fleet run recipes/*.yaml --store s3://bucket/zoo --scheduler tcp://head:8786 --matrix full`
    """
    from ..fleet.account import show
    from ..fleet.fleet import run as run_fleet

    options = _options(in_precisions(recipes, precision), store, matrix, scheduler, publish, log, scratch, patience)
    statuses = run_fleet(options)
    show(statuses, _next_command(options))
    raise typer.Exit(0 if all(status.passed for status in statuses) else 1)


@app.command()
def status(
    recipes: Recipes,
    store: StoreUrl,
    precision: Precisions = None,
    matrix: MatrixChoice = None,
    publish: Publish = None,
    patience: Patience = 120.0,
) -> None:
    """Show which results exist, which failed, and how to produce the rest.

    Exits with 0 if every result exists and passed, otherwise with 1.

    Example: `qwen3vl-export fleet status tiny tiny-int8 --store /srv/zoo`
    """
    from ..fleet.account import show
    from ..fleet.fleet import status as fleet_status

    options = _options(in_precisions(recipes, precision), store, matrix, None, publish, None, None, patience)
    statuses = fleet_status(options)
    show(statuses, _next_command(options))
    raise typer.Exit(0 if all(status.passed for status in statuses) else 1)


def in_precisions(recipes: list[str], precisions: list[str] | None) -> list[str]:
    """Every recipe in every precision named, or as it is if none is."""
    from ..recipe import in_precision

    return [in_precision(recipe, name) for recipe in recipes for name in precisions] if precisions else recipes


def _options(
    recipes: list[str],
    store: str,
    matrix: Matrix | None,
    scheduler: str | None,
    publish: str | None,
    log: Path | None,
    scratch: Path | None,
    patience: float,
) -> FleetOptions:
    from parity_tests.harness import shards

    from ..fleet.fleet import FleetOptions
    from ..fleet.harness import Harness

    harness = Harness(shards.units, shards.verify_part, shards.merge_parts, shards.forget, shards.version)
    tier = matrix.value if matrix else None
    return FleetOptions(recipes, store, harness, scheduler, tier, publish, log, scratch, patience)


def _next_command(options: FleetOptions) -> list[str]:
    """The command that continues this fleet, with `{recipes}` in place of its recipes."""
    values = {
        "--store": options.store_url,
        "--matrix": options.matrix,
        "--scheduler": options.scheduler,
        "--publish": options.target,
    }
    words = [word for name, value in values.items() if value is not None for word in (name, value)]
    return ["qwen3vl-export", "fleet", "run", "{recipes}", *words]
