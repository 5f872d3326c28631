"""Measures whole builds at published sizes: wall time, peak memory, bytes read and written; beside cp and two peers.

    python scripts/bench_export.py run --size 2b --precision float16 --precision int4 --peer transformers --peer genai
    python scripts/bench_export.py run --size 30b-a3b --precision int4 --zeros      zeros cost no disk
    python scripts/bench_export.py run --size 235b-a22b --precision float32 --zeros --plan
    python scripts/bench_export.py forms --size 8b --form fp8 --form gptq      quantized and adapted; zeros
    python scripts/bench_export.py chart docs/bench/export.json

A checkpoint of the published shapes is written to a temporary directory, random unless `--zeros` is said. Every build
runs in a fresh process; its peak is the kernel's VmHWM. `weights` is the time spent on them alone, `tracing` all that
comes before, calibration too; the rest is the sha256 of every file read and written. `cp` copies the weight files.

Builds and copies alike begin with memory full of cached files, their own among them, as on a machine in use, and with
everything written that was to be. Otherwise the figures are the virtual machine's: memory that it has given back costs
eight times as much to write to as memory that was freed a moment before.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from bench_vision import ROOT
from hardware import cpu_name, resident
from rich.console import Console

EMBEDDINGS_AND_DECODER = "quantization: {{embeddings: {{method: {0}}}, decoder_model_merged: {{method: {0}}}}}"
PRECISIONS: dict[str, str] = {  # recipe text after `extends`
    "float32": "dtype: float32",
    "bfloat16": "dtype: bfloat16",
    "float16": "dtype: float16",
    "int8": EMBEDDINGS_AND_DECODER.format("int8"),
    "int8_dynamic": "quantization: {embeddings: {method: int8}, decoder_model_merged: {method: int8_dynamic}}",
    "int4": EMBEDDINGS_AND_DECODER.format("int4"),
    "int4-gptq": "quantization: {decoder_model_merged: {method: int4, algorithm: gptq}}\n"
    f"calibration: {{source: {ROOT / 'recipes' / 'calibration'}}}",
    # What the genai builder writes: no vision encoder.
    "int4-text": EMBEDDINGS_AND_DECODER.format("int4") + "\ngraphs: [embed_tokens, decoder_model_merged]",
}
TINY = ROOT / "recipes" / "checkpoints" / "tiny"
COPIED = ("float32", "float16", "bfloat16")  # precisions that do little more to a byte than cp
TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai")
LIMIT = 2 << 30  # bytes of peak memory of a build
POOL = 1 << 24  # random values that fill every tensor, over and over
app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def ours(recipe: Path, checkpoint: Path, out: Path) -> None:
    """One build, measured from inside its process."""
    start = time.perf_counter()
    from qwen3vl_export.exporter.pipeline import build
    from qwen3vl_export.recipe import load_recipe

    last, streamed, traced = time.perf_counter(), 0.0, 0.0

    def log(line: str) -> None:
        nonlocal last, streamed, traced
        now = time.perf_counter()
        if " written " in line or line.startswith("weights:"):
            streamed += now - last
        elif not streamed:
            traced = now - start
        last = now

    build(load_recipe(recipe), checkpoint=str(checkpoint), out=out, log=log)
    told(start, out, stream=streamed, trace=traced)


@app.command(hidden=True)
def plan(recipe: Path, checkpoint: Path, out: Path) -> None:
    """Trace everything and say what a build would do."""
    start = time.perf_counter()
    from qwen3vl_export.exporter.plan import plan_build
    from qwen3vl_export.recipe import load_recipe

    found = plan_build(load_recipe(recipe), checkpoint=str(checkpoint), out=out, log=lambda line: None)
    out.mkdir()
    told(start, out, planned=found.bytes)


@app.command(hidden=True)
def transformers(checkpoint: Path, out: Path) -> None:
    """The decoder as most exporters do it: load everything, then torch.onnx.export."""
    start = time.perf_counter()
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float16).eval()
    decoder = model.model.language_model
    example = {"inputs_embeds": torch.zeros(2, 7, decoder.config.hidden_size, dtype=torch.float16), "use_cache": False}
    shapes = {"inputs_embeds": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, "use_cache": None}
    out.mkdir()
    program = torch.onnx.export(decoder, kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    program.save(out / "model.onnx", external_data=True)
    told(start, out)


@app.command(hidden=True)
def genai(checkpoint: Path, out: Path) -> None:
    """onnxruntime-genai's model builder: the text decoder in int4."""
    start = time.perf_counter()
    words = ["-i", str(checkpoint), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(out / "cache")]
    sys.argv[1:] = words
    with redirect_stdout(sys.stderr):
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    shutil.rmtree(out / "cache", ignore_errors=True)
    told(start, out)


def told(start: float, out: Path, **more: float) -> None:
    """Print what this process took, as JSON."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    files = [file.stat() for file in out.rglob("*") if file.is_file()]
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "peak": resident("VmHWM"),
                "read": int(io["rchar"]),
                "written": int(io["wchar"]),
                "bytes": sum({file.st_ino: file.st_size for file in files}.values()),  # a second name takes no room
                **more,
            }
        )
    )


@app.command()
def run(
    size: Annotated[str, typer.Option(help="2b, 4b, 8b, 32b, 30b-a3b or 235b-a22b.")] = "2b",
    precision: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="transformers or genai, if installed.")] = None,
    zeros: Annotated[bool, typer.Option(help="A checkpoint of holes, which costs no disk.")] = False,
    plan: Annotated[bool, typer.Option(help="Trace and plan only.")] = False,
    repeats: Annotated[int, typer.Option(help="Builds and copies, in turn; the medians are told.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Where to write; needs room for checkpoint and artifact.")] = None,
    out: Annotated[Path | None, typer.Option(help="Add the figures to this JSON file.")] = None,
) -> None:
    """Build, and print what it took."""
    from parity_tests.fixtures.official import config, write_sparse_checkpoint

    console = Console(highlight=False, soft_wrap=True)
    about = machine()
    console.print(", ".join(f"{key} {value}" for key, value in {"size": size, **about}.items()))
    key = f"{size}{' zeros' if zeros else ''}{' plan' if plan else ''}"
    with tempfile.TemporaryDirectory(dir=work) as folder:
        checkpoint = write_sparse_checkpoint(Path(folder) / "checkpoint", with_tiny_tokens(config(size)), TINY)
        if not zeros:
            fill(checkpoint)
        for name in [*(precision or ([] if peer else ["float16", "int4"])), *(peer or [])]:
            command, settings = name, [checkpoint]
            if name in PRECISIONS:
                recipe = write_recipe(Path(folder), size, name)
                command, settings = "plan" if plan else "ours", [recipe, checkpoint]
            made = Path(folder) / name
            copying = name in COPIED and not (zeros or plan)
            runs = [one(command, settings, made, copying) for _ in range(repeats)]
            found = {figure: median(run[figure] for run in runs) for figure in runs[0]} | {"repeats": repeats}
            console.print(line(name, found))
            if out is not None:
                add(out, about, key, {name: found})


@app.command()
def forms(
    size: Annotated[str, typer.Option(help="As of run; a mixture for single-experts.")] = "8b",
    form: Annotated[list[str] | None, typer.Option(help="Of parity_tests/fixtures/sparse_forms.py.")] = None,
    precision: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = "bfloat16",
    layers: Annotated[int | None, typer.Option(help="Layers of the text; all by default.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where to write; needs room for the artifact.")] = None,
    out: Annotated[Path | None, typer.Option(help="Add the figures to this JSON file.")] = None,
) -> None:
    """Build from checkpoints of zeros in other forms than the published one, and print what it took."""
    from parity_tests.fixtures.official import config
    from parity_tests.fixtures.sparse_forms import write_sparse_form

    console = Console(highlight=False, soft_wrap=True)
    key = f"{size} zeros{f', {layers} layers' if layers is not None else ''}"
    for name in form or []:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            recipe = write_recipe(Path(folder), size, precision)
            source = write_sparse_form(Path(folder) / "source", name, with_tiny_tokens(config(size, layers)))
            figures = measured("ours", recipe, source, Path(folder) / "artifact")
        console.print(line(name, figures))
        if out is not None:
            add(out, machine(), key, {f"{name} to {precision}": figures})


def with_tiny_tokens(model_config: Any) -> Any:
    """The configuration with the token ids of the tiny model's tokenizer, in which calibration looks them up."""
    for token, number in json.loads((TINY / "config.json").read_text()).items():
        if token.endswith("_token_id"):
            setattr(model_config, token, number)
    return model_config


def write_recipe(folder: Path, size: str, precision: str) -> Path:
    """The recipe of a published size in a precision of `PRECISIONS`."""
    recipe = folder / f"bench-{precision}.yaml"
    base = ROOT / "recipes" / f"qwen3-vl-{size}-instruct.yaml"
    recipe.write_text(f"extends: {base}\n{PRECISIONS[precision]}\n")
    return recipe


def one(command: str, settings: list[Path], made: Path, copying: bool) -> dict[str, Any]:
    """What one build says of itself, and how long its weight files take to copy; afterwards it is gone."""
    with memory_in_use(settings[-1]):
        found = measured(command, *settings, made)
    if copying and shutil.disk_usage(made).free > 1.1 * found["bytes"]:
        with memory_in_use(made / "onnx"):
            found["copy"] = copied(made / "onnx")
    shutil.rmtree(made)
    return found


def add(out: Path, about: Mapping[str, str], key: str, figures: Mapping[str, Any]) -> None:
    """Add figures to those in a file."""
    known = json.loads(out.read_text()) if out.is_file() else {"builds": {}}
    known["about"] = about
    known["builds"].setdefault(key, {}).update(figures)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known, indent=1) + "\n")


def machine() -> dict[str, str]:
    """What the figures depend on: the processor and the versions of the tools."""
    tools = {tool: known for tool in TOOLS if (known := version_of(tool))}
    return {"cpu": cpu_name(), "python": platform.python_version(), **tools}


def version_of(tool: str) -> str | None:
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def fill(checkpoint: Path) -> None:
    """Random bfloat16 values of unit scale in place of a checkpoint's holes."""
    import torch

    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    data = pool.view(torch.uint8).numpy()
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("r+b") as shard:
            end = shard.seek(0, 2)
            shard.seek(0)
            place = shard.seek(8 + int.from_bytes(shard.read(8), "little"))
            while place < end:
                place += shard.write(data[: end - place].data)


@contextmanager
def memory_in_use(folder: Path) -> Iterator[None]:
    """Inside, nothing waits for the disk and no memory is free: a file of holes is cached, then all in `folder`."""
    os.sync()
    holes = folder.with_name("holes")
    with holes.open("wb") as file:
        file.truncate(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in [holes, *sorted(folder.iterdir())]:
        with path.open("rb", buffering=0) as file:
            while file.read(POOL):
                pass
    yield
    holes.unlink()


def copied(folder: Path) -> float:
    """Seconds that copying these files takes."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--preserve=links", folder, folder.with_name("copy")], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder.with_name("copy"))
    return seconds


def measured(command: str, *arguments: Path, script: str = __file__, show: bool = False) -> dict[str, Any]:
    """What a command of a script says of itself in the last line it prints, run in a fresh process.

    Args:
        show: let it write to standard error.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    words = [sys.executable, script, command, *map(str, arguments)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=None if show else subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{(done.stderr or '')[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def line(name: str, found: Mapping[str, Any]) -> str:
    """`int4  61 s (20 s tracing, 38 s weights), peak 1.40 GiB, 4.6 GB read, 1.50 GB on disk`."""
    text = f"{name:12} {found['seconds']:.0f} s"
    if "stream" in found:
        text += f" ({found['trace']:.0f} s tracing, {found['stream']:.0f} s weights)"
    text += f", peak {found['peak'] / 2**30:.2f} GiB"
    text += f", {found['read'] / 1e9:.1f} GB read, {found['bytes'] / 1e9:.2f} GB on disk"
    if "planned" in found:
        text += f", {found['planned'] / 1e9:.2f} GB planned"
    if "copy" in found:
        text += f"; cp {found['copy']:.0f} s, weights at {found['copy'] / found['stream']:.2f} of its speed"
    if "stream" in found and found["peak"] > LIMIT:
        text += f"; over the limit of {LIMIT / 2**30:.0f} GiB"
    return text


@app.command()
def chart(figures: Path) -> None:
    """Draw the figures beside their file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    builds = [
        (f"{size.replace(' ', chr(10))}\n{name}", found)
        for size, of in json.loads(figures.read_text())["builds"].items()
        for name, found in of.items()
    ]
    places = range(len(builds))
    figure, axes = pyplot.subplots(2, 1, figsize=(13, 6), sharex=True, layout="constrained")
    axes[0].bar(places, [found["seconds"] for _, found in builds], color="0.75", label="other")
    weights = [found.get("stream", 0) for _, found in builds]
    traced = [found.get("trace", 0) for _, found in builds]
    axes[0].bar(places, weights, bottom=traced, color="tab:blue", label="weights")
    axes[0].bar(places, traced, color="tab:orange", label="tracing")
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False)
    axes[1].bar(places, [found["peak"] / 2**30 for _, found in builds], color="tab:green")
    axes[1].axhline(LIMIT / 2**30, color="0.4", linewidth=1)
    axes[1].set_ylabel("peak memory, GiB")
    axes[1].set_xticks(places, [name for name, _ in builds], fontsize=7)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(figures.with_suffix(".png"), dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    app()
