"""Times the vision encoder beside PyTorch and two other exporters: CPU seconds, memory and load time of one run.

    python scripts/bench_vision.py run --size 2b --depth 4 --out docs/bench/vision-2b.json
    python scripts/bench_vision.py run --size 8b --depth 4 --case 1024 --case mixed-9744 --side ort --side int8
    python scripts/bench_vision.py chart docs/bench/vision-2b.json

Each measurement is a fresh process: load, one tiny call to warm up, then one timed call; peak memory is what that call
adds to the loaded process. Sides take turns, so that a drift of the machine hits all of them, and medians are compared.
Weights are random at the published shape; nothing here depends on their values. The sides are in `vision_sides.py`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from hardware import cpu_name, resident
from rich.console import Console
from vision_sides import SIDES, Refused, gemm_peak

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CASES: dict[str, list[list[int]]] = {  # image_grid_thw
    "256": [[1, 16, 16]],
    "1024": [[1, 32, 32]],
    "4096": [[1, 64, 64]],
    "16384": [[1, 128, 128]],
    "8x1024": [[1, 32, 32]] * 8,
    "16x1024": [[1, 32, 32]] * 16,
    "64x256": [[1, 16, 16]] * 64,
    "mixed-9744": [[1, 48, 48], [1, 16, 16], [1, 32, 64], [4, 16, 24], [1, 90, 40]],
}
LIMITS = {"256": 0.55, "1024": 0.55, "4096": 0.55, "16384": 0.60, "8x1024": 0.55, "64x256": 0.50, "mixed-9744": 0.55}
MEMORY_LIMIT = 1.5  # peak above the loaded session, in times PyTorch's
DOUBLING = ("8x1024", "16x1024", 2.1)  # twice the pictures may take this much more memory
WARM_UP = [[1, 2, 2]]
REFERENCE = "torch"

Figures = dict[str, dict[str, Any]]  # case -> side -> figures
app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def one(side: str, case: str, work: Path, threads: int) -> None:
    """One measurement, printed as JSON; run in a process of its own."""
    start = time.perf_counter()
    try:
        call = SIDES[side].load(work / "checkpoint", work / side, threads, CASES[case])
    except Refused as reason:
        print(json.dumps({"refused": str(reason)}))
        return
    load = time.perf_counter() - start
    inputs = [patches(grid) for grid in (WARM_UP, CASES[case])]
    call(*inputs[0])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    wall, cpu = time.perf_counter(), time.process_time()
    call(*inputs[1])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"load": load, "loaded": before, "cpu": cpu, "wall": wall, "peak": resident("VmHWM") - before}))


@app.command(hidden=True)
def gemm(case: str, work: Path, threads: int) -> None:
    """Share of GEMM in the nodes' time of one call, and the speed of GEMM as a fraction of what it reaches alone."""
    import onnx
    import onnxruntime as ort

    file = work / "ort" / "vision_encoder.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern, options.enable_profiling = threads, False, True
    options.profile_file_prefix = str(work / "profile")
    session = ort.InferenceSession(str(file), options)
    pixels, rows = patches(CASES[case])
    session.run(None, {"pixel_values": pixels, "image_grid_thw": rows})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    inner = sum(e["dur"] for e in kernels if e["args"]["op_name"] in ("If", "Loop"))  # counted again by those inside
    spent = sum(e["dur"] for e in kernels if e["args"]["op_name"] == "Gemm")
    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    products = [weights[node.input[1]] for node in graph.node if node.op_type == "Gemm"]
    merged = [0.25 if "merger" in node.input[1] else 1 for node in graph.node if node.op_type == "Gemm"]
    flops = sum(2 * len(pixels) * of * n * k for of, (n, k) in zip(merged, products, strict=True))
    speed = flops / spent / 1e3  # GF/s
    total = sum(e["dur"] for e in kernels) - inner
    peak = gemm_peak(threads)
    tower = json.loads((work / "checkpoint" / "config.json").read_text())["vision_config"]
    squares = sum(t * (h * w) ** 2 for t, h, w in CASES[case])
    attention = 4 * squares * tower["hidden_size"] * tower["depth"]  # every patch of a frame with every other, twice
    floor = (flops + attention) / peak / 1e9 * threads  # CPU seconds of the products alone, at the machine's peak
    print(json.dumps({"share": spent / total, "speed": speed, "peak": peak, "floor": floor}))


def patches(grid: list[list[int]]) -> tuple[Any, Any]:
    rows = np.array(grid, np.int64)
    return np.random.default_rng(0).standard_normal((int(rows.prod(1).sum()), 1536), np.float32), rows


@app.command(hidden=True)
def export(side: str, work: Path) -> None:
    """Export one side; run in a process of its own, because exporters leave traces in theirs."""
    (work / side).mkdir()
    SIDES[side].export(work / "checkpoint", work / side)


@app.command()
def run(
    size: Annotated[str, typer.Option(help="Tower shape: 2b, 4b, 8b or 32b.")] = "2b",
    depth: Annotated[int | None, typer.Option(help="Fewer layers; they are all alike.")] = None,
    case: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CASES)}; all unless said.")] = None,
    side: Annotated[list[str] | None, typer.Option(help=f"Beside torch: {', '.join(SIDES)}.")] = None,
    repeats: int = 5,
    threads: int = 2,
    work: Annotated[Path | None, typer.Option(help="Keep the models here, and use those that are there.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures here as JSON, beside those of other cases; and a picture.")
    ] = None,
) -> None:
    """Compare the exported encoder with PyTorch."""
    from parity_tests.fixtures.official import config, write_checkpoint

    console = Console(highlight=False, soft_wrap=True)
    sides = [REFERENCE, *(name for name in side or ["ort"] if name != REFERENCE)]
    about = describe(size, depth, threads, repeats)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if work is None else work
        if not (place / "checkpoint").is_dir():
            write_checkpoint(place / "checkpoint", config(size, layers=1, depth=depth, vocab_size=64))
        for who in sides:
            if not (place / who).is_dir():
                fresh("export", who, place)
        about["bytes"] = {who: sum(f.stat().st_size for f in (place / who).rglob("*") if f.is_file()) for who in sides}
        for name in case or CASES:
            figures[name] = compare(name, sides, place, threads, repeats)
            if "ort" in sides:
                figures[name]["ort"]["gemm"] = json.loads(fresh("gemm", name, place, threads))
            console.print(row(name, figures[name]))
    for line in verdicts(figures):
        console.print(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"about": about, "cases": {**earlier(out, about), **figures}}, indent=1) + "\n")
        chart(out)


def earlier(out: Path, about: dict[str, Any]) -> Figures:
    """The cases that a file holds already, if they were measured alike."""
    if not out.is_file():
        return {}
    found = json.loads(out.read_text())
    return found["cases"] if found["about"] == about else {}


def describe(size: str, depth: int | None, threads: int, repeats: int) -> dict[str, Any]:
    """The hardware and versions of a run."""
    tools = {tool: version(tool) for tool in ("torch", "transformers", "onnxruntime")}
    of = {"size": size, "depth": depth or "full", "threads": threads, "repeats": repeats}
    return {**of, "cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), **tools}


def compare(case: str, sides: list[str], work: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Medians of every side at one case; sides take turns."""
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
    for _ in range(repeats):
        for who in sides:
            if not any("refused" in run for run in runs[who]):
                runs[who].append(json.loads(fresh("one", who, case, work, threads).splitlines()[-1]))
    return {
        who: found[0]
        if "refused" in found[0]
        else {key: statistics.median(run[key] for run in found) for key in found[0]}
        for who, found in runs.items()
    }


def fresh(command: str, *arguments: Any) -> str:
    """A command of this script in a fresh process; returns what it printed.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    environment = {**os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    words = [sys.executable, __file__, command, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[2:])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def row(case: str, figures: dict[str, Any]) -> str:
    """`1024        torch 3.21 s 47 MB   ort 1.20 s 34 MB (0.37 of the time, 0.72 of the memory)`."""
    base = figures[REFERENCE]
    cells = [f"{case:12}"]
    for who, mine in figures.items():
        if "refused" in mine:
            cells.append(f"{who}: {mine['refused']}")
            continue
        cell = f"{who} {mine['cpu']:.2f} CPU s, {mine['peak'] / 2**20:.0f} MB"
        if who != REFERENCE:
            time_ratio, memory_ratio = mine["cpu"] / base["cpu"], mine["peak"] / max(base["peak"], 1)
            cell += f" ({time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory)"
        if "gemm" in mine:
            found = mine["gemm"]
            cell += f", GEMM {found['share']:.0%} at {found['speed']:.0f} of {found['peak']:.0f} GF/s"
            cell += f" (all products, attention's too, at that peak: {found['floor'] / base['cpu']:.2f} of the time)"
        cells.append(cell)
    return "\n    ".join(cells)


def verdicts(figures: Figures) -> list[str]:
    """Each limit that was measured, and whether it was met."""
    lines = []
    for case, of in figures.items():
        if "ort" not in of or case not in LIMITS:
            continue
        time_ratio = of["ort"]["cpu"] / of[REFERENCE]["cpu"]
        memory_ratio = of["ort"]["peak"] / of[REFERENCE]["peak"]
        met = {True: "met", False: "not met"}
        lines.append(
            f"{case}: time {time_ratio:.2f} of at most {LIMITS[case]} {met[time_ratio <= LIMITS[case]]}, "
            f"memory {memory_ratio:.2f} of at most {MEMORY_LIMIT} {met[memory_ratio <= MEMORY_LIMIT]}"
        )
    few, many, most = DOUBLING
    if all("ort" in figures.get(case, {}) for case in (few, many)):
        growth = figures[many]["ort"]["peak"] / figures[few]["ort"]["peak"]
        lines.append(f"{few} to {many}: memory {growth:.2f} of at most {most} {'met' if growth <= most else 'not met'}")
    return lines


@app.command("chart")
def chart(figures: Path) -> None:
    """Draw the figures of a JSON file as a PNG beside it: time as a share of PyTorch's, by case and side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(figures.read_text())
    cases = list(found["cases"])
    sides = [who for who in next(iter(found["cases"].values())) if who != REFERENCE]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(sides)
    for index, who in enumerate(sides):
        ratios = [
            of[who]["cpu"] / of[REFERENCE]["cpu"] if "cpu" in of[who] else float("nan")
            for of in found["cases"].values()
        ]
        axes.bar([place + index * width for place in range(len(cases))], ratios, width * 0.92, label=who)
    axes.axhline(1, color="0.4", linewidth=1)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(cases))], cases)
    axes.set_ylabel("CPU time, PyTorch = 1")
    about = found["about"]
    axes.set_title(
        f"Vision encoder, {about['size']} shape, {about['depth']} layers, {about['threads']} threads", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=min(len(sides), 5), loc="upper left", bbox_to_anchor=(0, -0.08))
    figure.savefig(figures.with_suffix(".png"), dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    app()
