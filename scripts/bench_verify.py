"""Measures `verify` at published sizes: wall and CPU time, peak memory, checks passed, and what `--plan` estimates.

    python scripts/bench_verify.py run --size 2b --precision int4
    python scripts/bench_verify.py run --size 8b --precision int4 --memory 10GB --out docs/bench/verify.json

A random checkpoint of the published shapes is written to a temporary directory and built; `verify` runs in a fresh
process, whose peak is the kernel's VmHWM. `--layers` makes the text model shallower where the disk is too small.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from bench_export import PRECISIONS, ROOT, TOOLS, add, measured, version_of
from hardware import cpu_name, resident
from rich.console import Console

SETTINGS = ROOT / "recipes" / "checkpoints" / "tiny"  # tokenizer and processor settings
app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def build(recipe: Path, checkpoint: Path, out: Path) -> None:
    """One build, in a process of its own."""
    from qwen3vl_export.exporter.pipeline import build as build_artifact
    from qwen3vl_export.recipe import load_recipe

    build_artifact(load_recipe(recipe), checkpoint=str(checkpoint), out=out, log=lambda line: None)
    print(json.dumps({"bytes": sum(file.stat().st_size for file in out.rglob("*"))}))


@app.command(hidden=True)
def ours(artifact: Path, cache: Path, options: Path) -> None:
    """One verification, measured from inside its process."""
    start = time.perf_counter()
    from parity_tests.harness.options import Options
    from parity_tests.harness.verify import estimate_of, open_for, run

    settings = Options(**json.loads(options.read_text()), checkpoint=options.parent / "checkpoint", cache=cache)
    bench = open_for(artifact, settings, "", tasks=())
    estimated = estimate_of(bench, settings)
    needs = estimated.resources.needs

    def say(module: str, results: int) -> None:
        print(f"{time.perf_counter() - start:.0f} s: {module}, {results} results", file=sys.stderr)

    report = run(bench, report=say, planned=estimated.planned)
    for outcome in report.failures:
        print(outcome.message, file=sys.stderr)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak": resident("VmHWM"),
        "checks": len(report.outcomes),
        "passed": len(report.outcomes) - len(report.failures),
        "streamed": bench.reference.streamed,
        "pytorch_seconds": report.seconds["pytorch"],
        "artifact_seconds": report.seconds["artifact"],
        "estimated_seconds": estimated.seconds.total,
        "estimated_memory": needs.streamed if bench.reference.streamed else needs.whole,
    }
    print(json.dumps(figures))


@app.command()
def run(
    size: Annotated[str, typer.Option(help="2b, 4b, 8b, 32b, 30b-a3b or 235b-a22b.")] = "2b",
    precision: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = None,
    memory: Annotated[str | None, typer.Option(help="As for `verify --memory`.")] = None,
    matrix: Annotated[str, typer.Option(help="Tier of the parity matrix.")] = "quick",
    case: Annotated[list[str] | None, typer.Option(help="Only this case; can be repeated.")] = None,
    layers: Annotated[int | None, typer.Option(help="Text layers; all by default.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where to write; needs room for checkpoint and artifact.")] = None,
    out: Annotated[Path | None, typer.Option(help="Add the figures to this JSON file.")] = None,
) -> None:
    """Build, verify, and print what it took."""
    from parity_tests.fixtures.official import config, fill_checkpoint, write_sparse_checkpoint
    from qwen3vl_export.console import parse_size

    console = Console(highlight=False, soft_wrap=True)
    tools = {tool: known for tool in TOOLS if (known := version_of(tool))}
    about = {"cpu": cpu_name(), "python": platform.python_version(), **tools}
    key = " ".join([size, *([f"{layers} layers"] if layers else []), *([memory] if memory else [])])
    with tempfile.TemporaryDirectory(dir=work) as folder:
        model_config = config(size, layers)
        for token, number in json.loads((SETTINGS / "config.json").read_text()).items():
            if token.endswith("_token_id"):
                setattr(model_config, token, number)
        checkpoint = write_sparse_checkpoint(Path(folder) / "checkpoint", model_config, SETTINGS)
        fill_checkpoint(checkpoint, model_config)
        options = Path(folder) / "options.json"
        budget = parse_size(memory) if memory else None
        options.write_text(json.dumps({"matrix": matrix, "cases": case or [], "memory": budget}))
        for name in precision or ["int4"]:
            recipe, artifact = Path(folder) / f"bench-{name}.yaml", Path(folder) / name
            base = ROOT / "recipes" / f"qwen3-vl-{size}-instruct.yaml"
            recipe.write_text(f"extends: {base}\n{PRECISIONS[name]}\n")
            measured("build", recipe, checkpoint, artifact, script=__file__)
            figures = measured("ours", artifact, Path(folder) / "cache", options, script=__file__, show=True)
            console.print(describe(name, figures))
            if out is not None:
                add(out, about, key, {name: figures})


def describe(name: str, figures: dict[str, Any]) -> str:
    """`int4  612 s (1,100 s of CPU, 580 s estimated), peak 4.80 GiB, 165 of 165 checks, streamed`."""
    text = f"{name:12} {figures['seconds']:,.0f} s ({figures['cpu_seconds']:,.0f} s of CPU, "
    text += f"{figures['estimated_seconds']:,.0f} s estimated)"
    text += f", peak {figures['peak'] / 2**30:.2f} GiB, {figures['passed']} of {figures['checks']} checks"
    return text + (", streamed" if figures["streamed"] else ", whole")


if __name__ == "__main__":
    app()
