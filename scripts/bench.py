"""Times the decoder beside its peers: prefill, decode, memory, and the first token about a photograph.

    python scripts/bench.py run                                   2B shape, int4, beside onnxruntime-genai and llama.cpp
    python scripts/bench.py run --layers 4 --context 512          a quick look
    python scripts/bench.py run --side float32 --side transformers

Every measurement is a fresh process, sides take turns so that a drift of the machine hits all of them, and medians are
compared. The roofline is measured in the same run: a token cannot be decoded faster than weights and cache are read
from memory. Weights are random at the published shape, the same for all sides. Peers are no dependencies of the
package: `pip install onnxruntime-genai llama-cpp-python gguf`. A side that cannot be made says why in the table.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bench_vision import cpu_name, resident
from decoder_models import MAKERS, write_random
from decoder_sides import SIDES
from rich.console import Console
from rich.table import Table
from vision_sides import gemm_peak

ROOT = Path(__file__).resolve().parents[1]
OURS = ("int4", "int4-128", "float32")
STEPS = 12  # tokens decoded after each prompt; the median of them is the time per token
WARM_UP = 8  # tokens of a first prompt, which nobody times
PHOTOGRAPH = 1024  # pixels a side
TOOLS = ("onnxruntime", "torch", "transformers", "onnxruntime-genai", "llama-cpp-python", "openvino")

Figures = dict[str, Any]
app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def make(side: str, work: Path) -> None:
    """Make one side's model; in a process of its own, because exporters leave traces in theirs."""
    MAKERS[side](work)


@app.command(hidden=True)
def one(side: str, context: int, work: Path, threads: int) -> None:
    """One prompt of `context` tokens and the tokens after it, printed as JSON: seconds and bytes."""
    folder, load = SIDES[side]
    model = load(work / folder, threads)
    ids = np.random.default_rng(0).integers(3, 400, context)
    model.prefill(ids[:WARM_UP])
    model.step(5)
    figures = {}
    figures["prefill"], figures["prefill_cpu"] = timed(lambda: model.prefill(ids))
    steps = [timed(lambda: model.step(7)) for _ in range(STEPS)]
    figures["decode"], figures["decode_cpu"] = (statistics.median(each) for each in zip(*steps, strict=True))
    print(json.dumps({**figures, "resident": resident("VmRSS"), "peak": resident("VmHWM")}))


@app.command(hidden=True)
def photograph(side: str, work: Path, threads: int) -> None:
    """A photograph to the first token, printed as JSON: seconds and peak bytes."""
    folder, load = SIDES[side]
    model: Any = load(work / folder, threads)
    generator = np.random.default_rng(0)
    model.photograph(generator.integers(0, 256, (256, 256, 3), np.uint8))
    pixels = generator.integers(0, 256, (PHOTOGRAPH, PHOTOGRAPH, 3), np.uint8)
    patches = 0

    def see() -> None:
        nonlocal patches
        patches = model.photograph(pixels)

    seconds, cpu = timed(see)
    figures = {"patches": patches, "first_token": seconds, "first_token_cpu": cpu, "peak": resident("VmHWM")}
    print(json.dumps(figures))


@app.command(hidden=True)
def roofline(threads: int) -> None:
    """What this machine can do at most, printed as JSON: bytes read a second, float32 operations a second."""
    parts = [np.ones(2**26, np.float32) for _ in range(threads)]  # 256 MB each

    def read() -> None:
        workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    bandwidth = sum(part.nbytes for part in parts) / min(timed(read)[0] for _ in range(7))
    print(json.dumps({"bandwidth": bandwidth, "gemm": gemm_peak(threads) * 1e9}))


def timed(call: Any) -> tuple[float, float]:
    """Seconds by the clock, and of all threads together: the second hardly moves on a machine that is busy besides.

    Threads that wait by spinning count as well, so compare CPU seconds of runs with one thread.
    """
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


@app.command()
def run(
    size: Annotated[str, typer.Option(help="Shape: 2b, 4b, 8b, 32b, or the tiny checkpoint.")] = "2b",
    layers: Annotated[int | None, typer.Option(help="Fewer text layers; they are all alike.")] = None,
    depth: Annotated[int | None, typer.Option(help="Fewer vision layers.")] = None,
    vocab: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 151936,
    side: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(SIDES)}.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of the prompt; several are possible.")] = None,
    photo: Annotated[bool, typer.Option(help="Also time the first token about a photograph.")] = False,
    repeats: int = 5,
    threads: int = 2,
    work: Annotated[Path | None, typer.Option(help="Keep the models here, and use those that are there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON, and a picture beside it.")] = None,
) -> None:
    """Compare the exported decoder with its peers."""
    console = Console(highlight=False, soft_wrap=True)
    sides = side or ["int4", "genai", "llama.cpp"]
    if unknown := sorted(set(sides) - set(SIDES)):
        raise typer.BadParameter(f"no side {', '.join(unknown)}; there are {', '.join(SIDES)}")
    about = describe(size, layers, vocab, threads, repeats)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        place = folder if work is None else work
        refused = prepare(Path(place), sides, size, layers, depth, vocab)
        for name, reason in refused.items():
            console.print(f"{name}: {reason}")
        figures = measure(
            Path(place), [name for name in sides if name not in refused], context, photo, repeats, threads
        )
    figures = {"about": about, "refused": refused, **figures}
    for table in tables(figures):
        console.print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")
        chart(out)


def describe(size: str, layers: int | None, vocab: int, threads: int, repeats: int) -> dict[str, Any]:
    """The hardware, the versions and what is measured."""
    tools = {}
    for tool in TOOLS:
        try:
            tools[tool] = version(tool)
        except PackageNotFoundError:
            tools[tool] = "none"
    of = {"size": size, "layers": layers or "all", "vocab": vocab, "threads": threads, "repeats": repeats}
    return {**of, "cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), **tools}


def prepare(
    work: Path, sides: list[str], size: str, layers: int | None, depth: int | None, vocab: int
) -> dict[str, str]:
    """Make what is not there yet; returns why a side could not be made."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "checkpoint").is_dir():
        write_random(work, size, layers, depth, vocab)
    refused = {}
    for name in sides:
        done = work / f"{name}.made"
        if not done.exists():
            try:
                fresh("make", name, work)
            except Failed as error:
                refused[name] = f"could not be made ({error})"
                continue
            done.touch()
    return refused


def measure(
    work: Path, sides: list[str], contexts: list[int] | None, photo: bool, repeats: int, threads: int
) -> Figures:
    """The roofline, and medians of every side at every context; sides take turns."""
    config = json.loads((work / "checkpoint" / "config.json").read_text())["text_config"]
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    found: Figures = {
        "roofline": json.loads(fresh("roofline", threads)),
        "weights": {name: decoder_bytes(work, name) for name in sides},
        "cache_values": per_token,
        "contexts": {},
    }
    for context in contexts or (512, 2048, 4096):
        found["contexts"][str(context)] = medians("one", sides, repeats, context, work, threads)
    if photo:
        seeing = [name for name in sides if hasattr(SIDES[name][1], "photograph")]
        found["photograph"] = medians("photograph", seeing, repeats, work, threads)
    return found


def medians(command: str, sides: list[str], repeats: int, *arguments: Any) -> dict[str, dict[str, float]]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name in sides:
            runs[name].append(json.loads(fresh(command, name, *arguments).splitlines()[-1]))
    return {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }


def decoder_bytes(work: Path, side: str) -> int | None:
    """Bytes of weights our decoder reads for one token; None for a peer, whose file holds its token table besides."""
    data = (work / side / "onnx").glob("decoder_model_merged.onnx_data*")
    return sum(file.stat().st_size for file in data) if side in OURS else None


class Failed(Exception):
    """The last line a failed process wrote."""


def fresh(command: str, *arguments: Any) -> str:
    """A command of this script in a fresh process; returns what it printed.

    Raises:
        Failed: it did.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, __file__, command, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip(" │╰╯─")]
        raise Failed(lines[-1].strip() if lines else f"exit code {done.returncode}")
    return done.stdout


def tables(figures: Figures) -> list[Table]:
    """The figures for people: each side beside ours, with ratios above 1 where ours is faster or smaller."""
    roof = figures["roofline"]
    title = f"{roof['bandwidth'] / 1e9:.1f} GB/s read, {roof['gemm'] / 1e9:.0f} GF/s GEMM"
    table = Table("tokens", "side", "decode ms", "of limit", "prefill tok/s", "resident GB", "peak GB", title=title)
    for context, sides in figures["contexts"].items():
        ours = next((sides[name] for name in OURS if name in sides), None)
        for name, of in sides.items():
            speed = int(context) / of["prefill"]
            limit = decode_limit(figures, name, int(context))
            cells = [f"{of['decode'] * 1e3:.1f}", f"{limit / of['decode']:.0%}" if limit else "", f"{speed:.0f}"]
            if ours is not None and of is not ours:
                cells[0] += f" ({of['decode'] / ours['decode']:.2f}x)"
                cells[2] += f" ({of['prefill'] / ours['prefill']:.2f}x)"
            table.add_row(context, name, *cells, f"{of['resident'] / 1e9:.2f}", f"{of['peak'] / 1e9:.2f}")
        table.add_section()
    found = [table]
    if "photograph" in figures:
        seen = Table("side", "patches", "first token s", "peak GB", title=f"photograph of {PHOTOGRAPH}x{PHOTOGRAPH}")
        for name, of in figures["photograph"].items():
            seen.add_row(name, f"{of['patches']:.0f}", f"{of['first_token']:.2f}", f"{of['peak'] / 1e9:.2f}")
        found.append(seen)
    return found


def decode_limit(figures: Figures, side: str, context: int) -> float | None:
    """Seconds it takes to read our weights and our float32 cache once."""
    weights = figures["weights"][side]
    if weights is None:
        return None
    return float((weights + figures["cache_values"] * context * 4) / figures["roofline"]["bandwidth"])


@app.command()
def chart(figures: Path) -> None:
    """Draw the figures of a JSON file as a PNG beside it: time per token and prompt speed by context and side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(figures.read_text())
    contexts = list(found["contexts"])
    sides = list(found["contexts"][contexts[0]])
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    places = [int(context) for context in contexts]
    for name in sides:
        of = [found["contexts"][context][name] for context in contexts]
        (line,) = left.plot(places, [one["decode"] * 1e3 for one in of], marker="o", label=name)
        right.plot(places, [place / one["prefill"] for place, one in zip(places, of, strict=True)], marker="o")
        limits = [decode_limit(found, name, place) for place in places]
        if None not in limits:
            left.plot(places, [limit * 1e3 for limit in limits if limit], color=line.get_color(), linestyle=":")
    left.set(title="decode, ms per token (dotted: memory limit)", xlabel="tokens of context", ylim=(0, None))
    right.set(title="prefill, tokens per second", xlabel="tokens of prompt", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(places)
    left.legend(frameon=False)
    about = found["about"]
    picture.suptitle(f"{about['size']} shape, {about['layers']} layers, {about['threads']} threads, {about['cpu']}")
    picture.savefig(figures.with_suffix(".png"), dpi=130)
    pyplot.close(picture)


if __name__ == "__main__":
    app()
