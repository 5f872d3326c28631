"""The command line: `build`, `verify`, `run`, `chat`, `embed`, `rerank`, `publish`, `fetch`, `verify-artifact`,
`inspect`, `recipes` and `fleet`.

Each command passes its arguments to one function elsewhere. Exporting needs torch, running does not, so a command
imports what it needs when it is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..console import parse_duration, parse_size, say, write_json
from . import fleet as cli_fleet
from . import publish as cli_publish
from . import recipes as cli_recipes
from . import retrieval as cli_retrieval
from . import run as cli_run
from .crash import DEBUG_VARIABLE
from .errors import Commands
from .fleet import Matrix
from .paths import expand

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export Qwen3-VL to ONNX for any image size, prove the result equal to PyTorch, and run it without PyTorch.",
    epilog="To get started: `qwen3vl-export build tiny`, then `verify artifacts/tiny`, "
    'then `run artifacts/tiny --image FILE --prompt "What is this?"`',
)
app.add_typer(cli_recipes.app, name="recipes")
app.add_typer(cli_fleet.app, name="fleet")


def memory_size(text: str) -> int:
    """A number of bytes, as `parse_size`; a usage error if it is none."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def duration(text: str) -> float:
    """A number of seconds, as `parse_duration`; a usage error if it is none."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _show_tracebacks(requested: bool) -> None:
    if requested:
        os.environ[DEBUG_VARIABLE] = "1"


def _print_version(requested: bool) -> None:
    if requested:
        say(f"qwen3vl-export {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            callback=_show_tracebacks,
            help=f"Show the traceback of an error, as {DEBUG_VARIABLE}=1 in the environment does.",
        ),
    ] = False,
) -> None:
    pass


@app.command()
def build(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe (see: recipes list)."),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_REPO", help="Use this checkpoint: a directory, or a Hub repository as org/name."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of the Hub repository. [default: main]")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR_OR_REPO", help="Merge this LoRA adapter into the weights; can be repeated."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Build the recipe in this precision (see: recipes list), into NAME-PRECISION."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=expand, metavar="DIR", help="Output directory. [default: artifacts/NAME]")
    ] = None,
    keep_stages: Annotated[
        bool, typer.Option("--keep-stages", help="Also save the graph after every build stage, under stages/.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing artifact, or discard an interrupted build.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted build, keeping the weights it has written.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show the files a build would write, and estimate memory and time.")
    ] = False,
) -> None:
    """Build an artifact from a recipe.

    Traces the checkpoint's graphs, simplifies and optimizes them, and writes them with the weights and a manifest. The
    output directory appears only when the build is complete.

    Example: `qwen3vl-export build tiny`

    Example: `qwen3vl-export build qwen3-vl-2b-instruct --checkpoint ~/models/Qwen3-VL-2B-Instruct`

    Example: `qwen3vl-export build qwen3-vl-8b-instruct --precision int4`

    Example: `qwen3vl-export build qwen3-vl-30b-a3b-instruct --plan`
    """
    from ..recipe import in_precision, load_recipe
    from .checkpoints import checkpoint_at, verify_command

    loaded = load_recipe(recipe if precision is None else in_precision(recipe, precision))
    checkpoint = checkpoint_at(loaded, checkpoint, revision)
    if plan:
        from ..exporter.plan import plan_build
        from ..exporter.plan.table import show

        show(plan_build(loaded, checkpoint=checkpoint, adapters=adapter or (), out=out, log=say))
        return
    from ..exporter.pipeline import build as build_artifact

    path = build_artifact(
        loaded,
        checkpoint=checkpoint,
        adapters=adapter or (),
        out=out,
        keep_stages=keep_stages,
        force=force,
        resume=resume,
        log=say,
    )
    say(f"{path} is ready. Verify it: {verify_command(path, loaded, checkpoint, adapter or ())}")


@app.command()
def verify(
    artifact: Annotated[
        Path,
        typer.Argument(
            parser=expand,
            metavar="ARTIFACT",
            help="An artifact directory, or the contract (YAML) of another exporter's package.",
        ),
    ],
    matrix: Annotated[Matrix | None, typer.Option(help="How many cases to run. [default: as the recipe says]")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(parser=expand, metavar="DIR", help="The checkpoint to compare with, if it has moved."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR_OR_REPO", help="An adapter of the checkpoint, if it has moved; can be repeated."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Run only this case and write no evidence; can be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random cases, to repeat the run of a report.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Also find the first layer and the first build stage that differ.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            parser=expand, metavar="DIR", help="Cache of PyTorch's results. [default: in the user's cache directory]"
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            parser=expand, metavar="FILE", help="Append the result to this file. [default: next to the artifact]"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Verify only this one of the artifact's precisions. [default: all of them]"),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(parser=memory_size, metavar="SIZE", help="How much memory to take: 8GB. [default: what is free]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a verification that was interrupted, with the same options.")
    ] = False,
    time: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="TIME", help="Leave out the cases that do not fit into this time: 30min."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show the cases, and estimate time, memory and disk space.")
    ] = False,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            parser=expand,
            metavar="FILE.jsonl",
            help="Also ask both sides the questions of this file, and score their answers; can be repeated.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where PyTorch's side computes: cpu, cuda or cuda:1, always in float32. The artifact's is on the CPU.",
        ),
    ] = "cpu",
) -> None:
    """Compare an artifact with PyTorch, stage by stage, and write parity.json and parity.html into it.

    Exits with 0 if every check passes, 1 if one fails, 2 if it cannot compare.

    Example: `qwen3vl-export verify artifacts/tiny --matrix quick`

    Example: `qwen3vl-export verify artifacts/tiny --case odd-150x211 --bisect`

    Example: `qwen3vl-export verify artifacts/tiny --tasks questions.jsonl`

    Example: `qwen3vl-export verify artifacts/qwen3-vl-8b-instruct-int4 --memory 8GB --time 1h --plan`
    """
    from parity_tests.harness.options import Options
    from parity_tests.harness.verify import verify as verify_artifact

    tier = matrix.value if matrix else None
    cases, adapters = tuple(case or ()), tuple(adapter or ())
    options = Options(
        matrix=tier,
        checkpoint=checkpoint,
        cases=cases,
        seed=seed,
        bisect=bisect,
        cache=cache,
        history=history,
        precision=precision,
        adapters=adapters,
        memory=memory,
        resume=resume,
        time=time,
        plan=plan,
        device=device,
        tasks=tuple(tasks or ()),
    )
    raise typer.Exit(verify_artifact(artifact, options))


app.command()(cli_run.run)
app.command()(cli_run.chat)
app.command()(cli_retrieval.embed)
app.command()(cli_retrieval.rerank)
app.command()(cli_publish.publish)
app.command()(cli_publish.fetch)
app.command("verify-artifact")(cli_publish.verify_artifact)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(parser=expand, metavar="ARTIFACT_OR_ONNX", help="An artifact directory or an .onnx file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show the contents of an artifact or an ONNX file: inputs, outputs, operators, sizes, dtypes.

    Example: `qwen3vl-export inspect artifacts/tiny`

    Example: `qwen3vl-export inspect artifacts/tiny/onnx/vision_encoder.onnx --json`
    """
    from ..inspection import inspect_path
    from ..inspection.tables import show

    inspection = inspect_path(path)
    if as_json:
        write_json(inspection.to_json_dict(), indent=1)
    else:
        show(inspection)
