"""Times the whole pipeline beside its peers: prefill, decode, memory, and the first token about a photograph.

    python scripts/bench.py run                                   2B shape, int4, beside genai and llama.cpp
    python scripts/bench.py run --layers 4 --context 512          a quick look
    python scripts/bench.py run --side fp32 --side transformers
    python scripts/bench.py run --photo --side int4 --side openvino-genai \\
        --python openvino-genai=../openvino-env/bin/python        a side in another environment
    python scripts/bench.py run --side int4 --side int4@before --checkout int4@before=../before

Every measurement is a fresh process, sides take turns so that a drift of the machine hits all of them, and medians are
compared. The roofline is measured in the same run: a token cannot be decoded faster than weights and cache are read
from memory. Weights are random at the published shape, the same for all sides, which are listed in `bench_sides.py`.
Any precision in `recipes/precisions` is one. A side that cannot be made says why in the table.

Peers are no dependencies of the package: `pip install onnxruntime-genai llama-cpp-python gguf`, and for
`openvino-genai` an environment of its own, because optimum-intel needs an older transformers:
`pip install torch==2.13.0 torchvision==0.28.0 transformers==5.0.0 optimum-intel nncf openvino-genai`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from bench_sides import NAMES, is_ours, is_side
from bench_tables import Figures, tables
from bench_tables import chart as draw
from decoder_models import CHECKPOINT, ROOT, write_prompt, write_random
from hardware import cpu_name
from rich.console import Console

WORKER = Path(__file__).with_name("bench_side.py")
app = typer.Typer(add_completion=False)


class Failed(Exception):
    """The last line a failed process wrote."""


class Places:
    """Where sides are made and measured: with which interpreter, and with the code of which checkout.

    Args:
        python, checkout: `SIDE=PATH` pairs.
    """

    def __init__(self, python: list[str], checkout: list[str]) -> None:
        self.python, self.checkout = (
            {side: os.path.abspath(path) for side, path in (pair.split("=", 1) for pair in pairs)}
            for pairs in (python, checkout)
        )

    def run(self, command: str, *arguments: Any) -> dict[str, Any]:
        """A command of `bench_side.py` in a fresh process; what it printed.

        Raises:
            Failed: it did.
        """
        side = str(arguments[0])
        code = self.checkout.get(side, str(ROOT))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([code, os.environ.get("PYTHONPATH", "")])}
        words = [self.python.get(side, sys.executable), str(WORKER), command, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=code)  # with its recipes
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip(" │╰╯─")]
            raise Failed(lines[-1].strip() if lines else f"exit code {done.returncode}")
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures


@app.command()
def run(
    size: Annotated[str, typer.Option(help="Shape: 2b, 4b, 8b, 32b, or the tiny checkpoint.")] = "2b",
    layers: Annotated[int | None, typer.Option(help="Fewer text layers; they are all alike.")] = None,
    depth: Annotated[int | None, typer.Option(help="Fewer vision layers.")] = None,
    vocab: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 151936,
    side: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(NAMES)}.")] = None,
    python: Annotated[list[str] | None, typer.Option(metavar="SIDE=FILE", help="Another interpreter.")] = None,
    checkout: Annotated[list[str] | None, typer.Option(metavar="SIDE=FOLDER", help="Code of another version.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of the prompt; several are possible.")] = None,
    photo: Annotated[bool, typer.Option(help="Also a question about a photograph.")] = False,
    repeats: int = 5,
    threads: int = 2,
    work: Annotated[Path | None, typer.Option(help="Keep the models here, and use those that are there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON, and a picture beside it.")] = None,
) -> None:
    """Compare the exported model with its peers."""
    console = Console(highlight=False, soft_wrap=True)
    sides = side or ["int4", "genai", "llama.cpp"]
    if unknown := sorted(name for name in sides if not is_side(name)):
        raise typer.BadParameter(f"no side {', '.join(unknown)}; there are {', '.join(NAMES)}")
    places = Places(python or [], checkout or [])
    contexts = context or [512, 2048, 4096]
    about = describe(size, layers, vocab, threads, repeats, places)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder) if work is None else work).absolute()
        place.mkdir(parents=True, exist_ok=True)
        if not (place / CHECKPOINT).is_dir():
            write_random(place, size, layers, depth, vocab)
        refused = prepare(place, sides, places)
        for name, reason in refused.items():
            console.print(f"{name}: {reason}")
        figures = measure(
            place, [name for name in sides if name not in refused], contexts, photo, repeats, threads, places
        )
    figures = {"about": about, "refused": refused, **figures}
    for table in tables(figures):
        console.print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")
        draw(out)


@app.command()
def chart(figures: Path) -> None:
    """Draw the figures of a JSON file as a PNG beside it: time per token and prompt speed by context and side."""
    draw(figures)


def describe(size: str, layers: int | None, vocab: int, threads: int, repeats: int, places: Places) -> dict[str, Any]:
    """The hardware, the versions and what is measured."""
    of = {"size": size, "layers": layers or "all", "vocab": vocab, "threads": threads, "repeats": repeats}
    versions = places.run("versions", "")
    for side in places.python:
        told = places.run("versions", side)
        versions |= {f"{tool} of {side}": number for tool, number in told.items() if versions.get(tool) != number}
    return {**of, "cpu": cpu_name(), "cores": os.cpu_count(), **versions}


def prepare(work: Path, sides: list[str], places: Places) -> dict[str, str]:
    """Make the models that are not there yet; why a side could not be made."""
    refused = {}
    for name in sides:
        done = work / f"{name}.made"
        if not done.exists():
            try:
                places.run("make", name, work)
            except Failed as error:
                refused[name] = f"could not be made ({error})"
                continue
            done.touch()
    return refused


def measure(
    work: Path, sides: list[str], contexts: list[int], photo: bool, repeats: int, threads: int, places: Places
) -> Figures:
    """The roofline, and medians of every side at every context; sides take turns."""
    roof = places.run("roofline", threads)
    ours = [name for name in sides if is_ours(name)]
    found: Figures = {"roofline": roof, "ours": ours, "contexts": {}}
    for context in contexts:
        write_prompt(work, context)
        medians_of = medians("read", sides, repeats, places, work, threads, context)
        for name in set(ours) - set(places.checkout):
            weights, cache = bytes_of(work / name)
            medians_of[name]["limit"] = (weights + context * cache) / roof["bandwidth"]
        found["contexts"][str(context)] = medians_of
    if photo:
        found["photograph"] = medians("look", sides, repeats, places, work, threads)
    return found


def medians(command: str, sides: list[str], repeats: int, places: Places, *arguments: Any) -> dict[str, dict[str, Any]]:
    """The median of each figure of each side; the reason where a side refused or failed."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, done in runs.items():
            if done and "refused" in done[-1]:
                continue
            try:
                done.append(places.run(command, name, *arguments))
            except Failed as error:
                done.append({"refused": f"failed ({error})"})
    return {
        name: done[-1]
        if "refused" in done[-1]
        else {key: statistics.median(figures[key] for figures in done) for key in done[0]}
        for name, done in runs.items()
    }


def bytes_of(artifact: Path) -> tuple[int, int]:
    """What the decoder of an artifact of ours reads for one token: bytes of weights, bytes of the cache of a token."""
    from qwen3vl_export.artifact import open_artifact
    from qwen3vl_export.contract import DECODER

    entry = open_artifact(artifact, check=False).manifest.graphs[DECODER]
    data = (artifact / "onnx").glob("decoder_model_merged.onnx_data*")
    past = [tensor for name, tensor in entry["inputs"].items() if name.startswith("past_key_values.")]
    bits = sum(
        tensor["shape"][1] * tensor["shape"][3] * int(tensor["dtype"].lstrip("abcdefghijklmnopqrstuvwxyz"))
        for tensor in past
    )
    return sum(file.stat().st_size for file in data), bits // 8


if __name__ == "__main__":
    app()
