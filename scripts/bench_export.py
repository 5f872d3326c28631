"""Measures whole builds at published sizes: wall time, peak memory, bytes read and written; beside cp and two peers.

    python scripts/bench_export.py run --size 2b --precision float16 --precision int4
    python scripts/bench_export.py run --size 30b-a3b --precision float32 --zeros      zeros cost no disk
    python scripts/bench_export.py run --size 2b --precision int4 --peer transformers --peer genai

A checkpoint of the published shapes is written to a temporary directory, random unless `--zeros` is said. Every build
runs in a fresh process; its peak is the kernel's VmHWM. `weights` is the time spent on them alone: the rest is tracing,
which does not depend on the size of a tensor, and the sha256 of every file read and written.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from bench_vision import ROOT, cpu_name, resident
from rich.console import Console

PRECISIONS: dict[str, str] = {  # recipe text after `extends`
    "float32": "dtype: float32",
    "bfloat16": "dtype: bfloat16",
    "float16": "dtype: float16",
    "int8": "quantization: {embeddings: {method: int8}, decoder_model_merged: {method: int8}}",
    "int4": "quantization: {embeddings: {method: int4}, decoder_model_merged: {method: int4}}",
}
LIMIT = 2 << 30  # bytes of peak memory of a build
POOL = 1 << 24  # random values that fill every tensor, over and over
app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def ours(recipe: Path, checkpoint: Path, out: Path) -> None:
    """One build, measured from inside its process."""
    start = time.perf_counter()
    from qwen3vl_export.pipeline import build
    from qwen3vl_export.recipe import load_recipe

    last, streamed = time.perf_counter(), 0.0

    def log(line: str) -> None:
        nonlocal last, streamed
        now = time.perf_counter()
        if " written " in line:
            streamed += now - last
        last = now

    build(load_recipe(recipe), checkpoint=str(checkpoint), out=out, log=log)
    told(start, out, stream=streamed)


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
    from onnxruntime_genai.models.builder import create_model

    create_model("", str(checkpoint), str(out), "int4", "cpu", str(out / "cache"))
    told(start, out)


def told(start: float, out: Path, **more: float) -> None:
    """Print what this process took, as JSON."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "peak": resident("VmHWM"),
                "read": int(io["rchar"]),
                "written": int(io["wchar"]),
                "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
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
    work: Annotated[Path | None, typer.Option(help="Where to write; needs room for checkpoint and artifact.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Build, and print what it took."""
    from parity_tests.official import config, write_sparse_checkpoint

    console = Console(highlight=False, soft_wrap=True)
    tools = {tool: version(tool) for tool in ("torch", "transformers", "onnx", "onnxruntime")}
    about = {"size": size, "zeros": zeros, "cpu": cpu_name(), "python": platform.python_version(), **tools}
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        checkpoint = write_sparse_checkpoint(
            Path(folder) / "checkpoint", config(size), ROOT / "recipes" / "checkpoints" / "tiny"
        )
        if not zeros:
            fill(checkpoint)
        for name in precision or ["float16", "int4"]:
            recipe = Path(folder) / f"bench-{name}.yaml"
            base = ROOT / "recipes" / f"qwen3-vl-{size}-instruct.yaml"
            recipe.write_text(f"extends: {base}\n{PRECISIONS[name]}\n")
            figures[name] = measured("ours", recipe, checkpoint, Path(folder) / name)
            if name in ("float32", "float16", "bfloat16") and not zeros:
                figures[name]["copy"] = copied(Path(folder) / name / "onnx")
            shutil.rmtree(Path(folder) / name)
            console.print(line(name, figures[name]))
        for name in peer or []:
            figures[name] = measured(name, checkpoint, Path(folder) / name)
            shutil.rmtree(Path(folder) / name)
            console.print(line(name, figures[name]))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"about": about, "builds": figures}, indent=1) + "\n")


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


def copied(folder: Path) -> float:
    """Seconds that copying these files takes."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", folder, folder.with_name("copy")], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder.with_name("copy"))
    return seconds


def measured(command: str, *arguments: Path) -> dict[str, Any]:
    """What a command of this script says of itself, run in a fresh process.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    words = [sys.executable, __file__, command, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """`int4  61 s (38 s of it weights), peak 1.4 GB, 4.6 GB read, 1.5 GB written`."""
    text = f"{name:12} {found['seconds']:.0f} s"
    if "stream" in found:
        text += f" ({found['stream']:.0f} s of it weights)"
    text += f", peak {found['peak'] / 2**30:.2f} GiB"
    text += f", {found['read'] / 1e9:.1f} GB read, {found['bytes'] / 1e9:.2f} GB on disk"
    if "copy" in found:
        text += f"; cp {found['copy']:.0f} s, weights at {found['copy'] / found['stream']:.2f} of its speed"
    if "stream" in found and found["peak"] > LIMIT:
        text += f"; over the limit of {LIMIT / 2**30:.0f} GiB"
    return text


if __name__ == "__main__":
    app()
