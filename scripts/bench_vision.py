"""Times the vision encoder beside PyTorch: CPU seconds, wall seconds and peak memory, as ratios of one run.

    python scripts/bench_vision.py run --size 2b                     every case, full depth
    python scripts/bench_vision.py run --size 8b --depth 4 --case 1024 --case mixed-9744

Each measurement is a fresh process: load, one tiny call to warm up, then one timed call; peak memory is what that call
adds to the loaded process. Sides take turns, so that a drift of the machine hits all of them, and medians are compared.
Weights are random at the published shape; nothing here depends on their values.
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
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CASES: dict[str, list[tuple[int, int, int]]] = {  # image_grid_thw
    "256": [(1, 16, 16)],
    "1024": [(1, 32, 32)],
    "4096": [(1, 64, 64)],
    "16384": [(1, 128, 128)],
    "8x1024": [(1, 32, 32)] * 8,
    "16x1024": [(1, 32, 32)] * 16,
    "64x256": [(1, 16, 16)] * 64,
    "mixed-9744": [(1, 48, 48), (1, 16, 16), (1, 32, 64), (4, 16, 24), (1, 90, 40)],
}
LIMITS = {"256": 0.55, "1024": 0.55, "4096": 0.55, "16384": 0.60, "8x1024": 0.55, "64x256": 0.50, "mixed-9744": 0.55}
MEMORY_LIMIT = 1.5  # peak above the loaded session, in times PyTorch's
WARM_UP = [(1, 2, 2)]
REFERENCE = "torch"

Call = Callable[[Any, Any], Any]
app = typer.Typer(add_completion=False)


def load_torch(work: Path, threads: int) -> Call:
    """transformers' tower with scaled_dot_product_attention, float32."""
    import torch
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    from qwen3vl_export.checkpoint import open_checkpoint

    torch.set_num_threads(threads)
    checkpoint = open_checkpoint(str(work / "checkpoint"))
    model = Qwen3VLVisionModel._from_config(checkpoint.config.vision_config, attn_implementation="sdpa").eval()
    prefix = "model.visual."
    names = [name for name in checkpoint.tensors if name.startswith(prefix)]
    model.load_state_dict({name.removeprefix(prefix): checkpoint.read(name).float() for name in names})

    def call(pixels: Any, grid: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels), grid_thw=torch.from_numpy(grid)).pooler_output

    return call


def load_target(target: str) -> Callable[[Path, int], Call]:
    """The exported encoder of one target, with the session options of the runtime."""

    def load(work: Path, threads: int) -> Call:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False
        session = ort.InferenceSession(str(work / target / "vision_encoder.onnx"), options)
        return lambda pixels, grid: session.run(None, {"pixel_values": pixels, "image_grid_thw": grid})

    return load


SIDES: dict[str, Callable[[Path, int], Call]] = {
    REFERENCE: load_torch,
    "ort": load_target("ort"),
    "portable": load_target("portable"),
}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@app.command(hidden=True)
def one(side: str, case: str, work: Path, threads: int) -> None:
    """One measurement, printed as JSON; run in a process of its own."""
    start = time.perf_counter()
    call = SIDES[side](work, threads)
    load = time.perf_counter() - start
    rng = np.random.default_rng(0)
    inputs = []
    for grid in (WARM_UP, CASES[case]):
        rows = np.array(grid, np.int64)
        inputs.append((rng.standard_normal((int(rows.prod(1).sum()), 1536), np.float32), rows))
    call(*inputs[0])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    wall, cpu = time.perf_counter(), time.process_time()
    call(*inputs[1])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"load": load, "loaded": before, "cpu": cpu, "wall": wall, "peak": resident("VmHWM") - before}))


def export(work: Path, size: str, depth: int | None) -> None:
    """A random checkpoint and the encoder of both targets, under `work`."""
    import torch

    from parity_tests.official import config, write_checkpoint
    from qwen3vl_export.checkpoint import open_checkpoint
    from qwen3vl_export.contract import VISION_ENCODER
    from qwen3vl_export.pipeline import export_graph
    from qwen3vl_export.stages import Stages
    from qwen3vl_export.submodules import build_submodule
    from qwen3vl_export.weights import WeightFile

    source = write_checkpoint(work / "checkpoint", config(size, layers=1, depth=depth, vocab_size=64))
    checkpoint = open_checkpoint(str(source))
    for target in ("ort", "portable"):
        (work / target).mkdir()
        submodule = build_submodule(checkpoint, VISION_ENCODER, target, torch.float32)
        with WeightFile.create(work / target, VISION_ENCODER) as data:
            export_graph(submodule, checkpoint, target, torch.float32, data, Stages(VISION_ENCODER))


@app.command()
def run(
    size: Annotated[str, typer.Option(help="Tower shape: 2b, 4b, 8b or 32b.")] = "2b",
    depth: Annotated[int | None, typer.Option(help="Fewer layers, for a quick look.")] = None,
    case: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CASES)}; all unless said.")] = None,
    side: Annotated[list[str] | None, typer.Option(help=f"Beside torch: {', '.join(SIDES)}.")] = None,
    repeats: int = 5,
    threads: int = 2,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Compare the exported encoder with PyTorch."""
    console = Console(highlight=False)
    sides = [REFERENCE, *(name for name in side or ["ort"] if name != REFERENCE)]
    about = {
        "size": size,
        "depth": depth or "full",
        "threads": threads,
        "repeats": repeats,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{tool: version(tool) for tool in ("torch", "transformers", "onnxruntime")},
    }
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        export(work, size, depth)
        for name in case or CASES:
            runs: dict[str, list[dict[str, float]]] = {who: [] for who in sides}
            for _ in range(repeats):
                for who in sides:
                    runs[who].append(measure(who, name, work, threads))
            figures[name] = {
                who: {key: statistics.median(run[key] for run in found) for key in found[0]}
                for who, found in runs.items()
            }
            console.print(row(name, figures[name], sides))
    if out is not None:
        out.write_text(json.dumps({"about": about, "cases": figures}, indent=1) + "\n")


def measure(side: str, case: str, work: Path, threads: int) -> dict[str, float]:
    """`one` in a fresh process."""
    command = [sys.executable, __file__, "one", side, case, str(work), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return result


def row(case: str, figures: dict[str, dict[str, float]], sides: list[str]) -> str:
    """`1024        torch 3.21 s 47 MB   ort 1.20 s 34 MB (0.37 of the time, 0.72 of the memory)`."""
    base = figures[REFERENCE]
    cells = [f"{case:12}"]
    for who in sides:
        mine = figures[who]
        cell = f"{who} {mine['cpu']:.2f} CPU s, {mine['peak'] / 2**20:.0f} MB"
        if who != REFERENCE:
            time_ratio, memory_ratio = mine["cpu"] / base["cpu"], mine["peak"] / max(base["peak"], 1)
            cell += f" ({time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory)"
        cells.append(cell)
    if case in LIMITS and "ort" in figures:
        met = figures["ort"]["cpu"] <= LIMITS[case] * base["cpu"]
        met &= figures["ort"]["peak"] <= MEMORY_LIMIT * base["peak"]
        cells.append("within limits" if met else f"over: time {LIMITS[case]}, memory {MEMORY_LIMIT}")
    return "  ".join(cells)


def cpu_name() -> str:
    """Model name of the processor, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    app()
