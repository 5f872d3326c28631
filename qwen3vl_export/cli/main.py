"""The command line: `build`, `verify`, `run`, `chat`, `publish`, `fetch`, `verify-artifact`, `inspect`, `recipes` and
`fleet`.

Each command hands its arguments to one function elsewhere. What a user can cause ends as one red line on standard error
and an exit code; anything else is a bug of ours and keeps its traceback. Exporting needs torch, running does not, so a
command imports what it needs when it is called.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..console import print_error, say
from ..errors import Qwen3VLExportError
from . import fleet as cli_fleet
from . import publish as cli_publish
from . import recipes as cli_recipes
from . import run as cli_run
from .fleet import Matrix

INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT
EXTRAS = {
    **dict.fromkeys(
        ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxsim", "safetensors", "google"), "export"
    ),
    **dict.fromkeys(("dask", "distributed", "fsspec"), "fleet"),
    "pytest": "test",
}
OS_ERRORS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "file too large for this file system or limit",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "read-only file system",
}


class Commands(TyperGroup):
    """The group of commands that turns what a user can cause into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Qwen3VLExportError as error:
            print_error(". ".join([str(error), *notes(error)]))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            print_error("; ".join(["interrupted", *notes(error)]))
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            print_error(
                f"{ctx.invoked_subcommand} needs {error.name}. Install it: pip install 'qwen3vl-export[{extra}]'"
            )
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in OS_ERRORS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            next = "Free some space and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose --out"
            print_error(". ".join([f"{where}{OS_ERRORS[error.errno]}", next, *notes(error)]))
            raise typer.Exit(2) from None


def notes(error: BaseException) -> list[str]:
    """What was noted on an error on its way up, e.g. where an interrupted build is kept."""
    return list(getattr(error, "__notes__", ()))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export Qwen3-VL to ONNX at any image size, prove the result equal to PyTorch, and run it without PyTorch.",
    epilog="A first session: `qwen3vl-export build tiny`, then `verify artifacts/tiny`, "
    'then `run artifacts/tiny --image FILE --prompt "What is this?"`',
)
app.add_typer(cli_recipes.app, name="recipes")
app.add_typer(cli_fleet.app, name="fleet")


def _version(asked: bool) -> None:
    if asked:
        say(f"qwen3vl-export {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one (see: recipes list).")
    ],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR_OR_REPO", help="Use this checkpoint instead of the recipe's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; artifacts/NAME unless said.")] = None,
    keep_stages: Annotated[
        bool, typer.Option("--keep-stages", help="Also keep the graph as it was after every stage, under stages/.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the artifact, or the interrupted build, that is already there.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted build: what it wrote is not written again.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be written, in how much memory and time; write nothing.")
    ] = False,
) -> None:
    """Build an artifact from a recipe.

    Traces the checkpoint's graphs, simplifies and optimizes them, writes the weights and a manifest. Nothing appears
    under the output directory until all of it is there.

    Example: `qwen3vl-export build tiny`

    Example: `qwen3vl-export build qwen3-vl-2b-instruct --checkpoint ~/models/Qwen3-VL-2B-Instruct`

    Example: `qwen3vl-export build qwen3-vl-30b-a3b-instruct --plan`
    """
    from ..recipe import load_recipe

    loaded = load_recipe(recipe)
    if plan:
        from ..exporter.plan import plan_build
        from ..exporter.plan.table import show

        show(plan_build(loaded, checkpoint=checkpoint, out=out, log=say))
        return
    from ..exporter.pipeline import build as build_artifact

    path = build_artifact(
        loaded, checkpoint=checkpoint, out=out, keep_stages=keep_stages, force=force, resume=resume, log=say
    )
    say(f"{path} is ready. Prove it: qwen3vl-export verify {path}")


@app.command()
def verify(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT", help="An artifact directory, or the contract (YAML) of another exporter's package."
        ),
    ],
    matrix: Annotated[Matrix | None, typer.Option(help="How many cases; the recipe's choice unless said.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The checkpoint to compare with, if it is not where it was.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Run only this case, and leave no evidence; can be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random cases; a report names the one it used.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Also find the first layer, and the first build stage, that differs.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where PyTorch's results are kept; the user's cache unless said.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the result here; beside the artifact unless said.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this precision; every one the artifact has unless said.")
    ] = None,
) -> None:
    """Compare an artifact with PyTorch, stage by stage, and write parity.json and parity.html into it.

    Ends with 0 if every check passes, 1 if one fails, 2 if there is nothing to compare.

    Example: `qwen3vl-export verify artifacts/tiny --matrix quick`

    Example: `qwen3vl-export verify artifacts/tiny --case odd-150x211 --bisect`
    """
    from parity_tests.harness.options import Options
    from parity_tests.harness.verify import verify as verify_artifact

    tier = matrix.value if matrix else None
    options = Options(tier, checkpoint, tuple(case or ()), seed, bisect, cache, history, precision)
    raise typer.Exit(verify_artifact(artifact, options))


app.command()(cli_run.run)
app.command()(cli_run.chat)
app.command()(cli_publish.publish)
app.command()(cli_publish.fetch)
app.command("verify-artifact")(cli_publish.verify_artifact)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="ARTIFACT_OR_ONNX", help="An artifact directory or an .onnx file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Show what is in an artifact or an ONNX file: inputs, outputs, operators, sizes, dtypes.

    Example: `qwen3vl-export inspect artifacts/tiny`

    Example: `qwen3vl-export inspect artifacts/tiny/onnx/vision_encoder.onnx --json`
    """
    from ..inspection import inspect_path
    from ..inspection.tables import show

    found = inspect_path(path)
    if as_json:
        typer.echo(json.dumps(found.to_json_dict(), indent=1, ensure_ascii=False))
    else:
        show(found)


def main() -> None:
    """Entry point of the command `qwen3vl-export`."""
    app()
