"""Runs artifacts in Chromium, in WebAssembly and in WebGPU, and compares every number with onnxruntime on this CPU.

    python scripts/check_browsers.py precisions                  # the tiny model in every precision
    python scripts/check_browsers.py precisions --icd ICD.json   # with another Vulkan driver
    python scripts/check_browsers.py checkpoint DIR --size 2b    # random weights to build a published size from
    python scripts/check_browsers.py answer ARTIFACT             # one answer about a picture: seconds and memory
    python scripts/check_browsers.py native ARTIFACT --python …  # its graphs in Python, numbers and seconds

Without `--icd` the adapter is SwiftShader, which is in Chromium and has no float16. Mesa's lavapipe has, and offers it
to onnxruntime-webgpu; Chromium 156, started as here, did not offer it to pages. It is in Mesa 25 of bookworm-backports
(`mesa-vulkan-drivers`; its file is `/usr/share/vulkan/icd.d/lvp_icd.x86_64.json`). gcc and `libvulkan-dev` build the
layer that disguises it. With `--python PYTHON`, one that has onnxruntime-webgpu, the graphs run without a browser as
well, in float16 if the driver has it. Ends with 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import typer
from rich.console import Console

from parity_tests.downstream.browser_graphs import (
    DEVICES,
    Computed,
    Run,
    call,
    complaints,
    compute,
    from_json,
    has_half,
    judge_runs,
    runs_of,
    serve_artifacts,
)
from parity_tests.downstream.chromium import SWIFTSHADER, Adapter, disguised, open_browser
from parity_tests.downstream.npm import published_tokenizer_file
from parity_tests.downstream.pictures import png
from parity_tests.fixtures.loud_checkpoint import write_loud_checkpoint
from parity_tests.fixtures.paths import RECIPES, TINY
from parity_tests.fixtures.published import write_published_checkpoint
from parity_tests.fixtures.tiny_builds import build_once
from parity_tests.harness.cases.matrix import load_matrix
from parity_tests.harness.cases.picture_kinds import photograph
from parity_tests.harness.judging.measures import logit_closeness
from parity_tests.harness.sides.bench import conversation
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import DECODER
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.packaging.browsers import WEBGPU
from qwen3vl_export.promise import suffixed
from qwen3vl_export.recipe import list_precisions, load_recipe
from qwen3vl_export.runtime import GREEDY, Image, Qwen3VL
from qwen3vl_export.runtime.prompts.messages import as_messages

NATIVE_RUNS = Path(__file__).with_name("webgpu_runs.py")
CASE = "as-traced-24x24"
SIDE_BY_SIDE = ("tiny-precisions", "tiny-portable")  # besides every file of recipes/precisions
LOUD = "loud"
CARRIED = "source"  # a precision of quantized checkpoints only
QUESTION = "What is this?"
KIND = re.compile("chromium.*--type=(renderer|gpu-process)", re.DOTALL)  # of a process, in its command line
PEAK = re.compile(r"VmHWM:\s+(\d+)")

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(add_completion=False)
Icd = Annotated[Path | None, typer.Option(help="The file that names a Vulkan driver, such as lavapipe's.")]


@app.command()
def precisions(
    icd: Icd = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this artifact, such as web; can be repeated.")] = None,
    device: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(DEVICES)}.")] = None,
    python: Annotated[
        Path | None, typer.Option(help="A Python with onnxruntime-webgpu, in which the graphs run as well.")
    ] = None,
) -> None:
    """The tiny model in every precision."""
    matrix = load_matrix()
    case = next(case for case in matrix.of_tier("quick") if case.name == CASE)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        adapter = adapter_of(icd, Path(folder))
        artifacts = built(Path(folder), only or [])
        (Path(folder) / "site").mkdir()
        with open_browser(adapter) as browser, serve_artifacts(Path(folder) / "site", artifacts) as site:
            half = has_half(browser, site)
            for name, path in artifacts.items():
                for artifact in open_artifact(path).every_precision:
                    model = Qwen3VL(artifact)
                    runs = runs_of(model, model.prepare([conversation(matrix.draw(case)[0])]))
                    for where in device or DEVICES:
                        result = compute(browser, site, name, runs, where, artifact.precision)
                        console.print(describe(name, model, runs, where, result))
                        wrong += complaints(model, runs, where, result, half)
                    if python is not None:
                        result = compute_natively(python, adapter, model, runs)
                        console.print(describe(name, model, runs, "Python", result))
                        wrong += complaints(model, runs, WEBGPU, result, has_half=icd is not None)
    for line in wrong:
        console.print(f"WRONG: {line}")
    raise typer.Exit(bool(wrong))


@app.command()
def answer(
    artifact: Path,
    icd: Icd = None,
    precision: Annotated[str, typer.Option(help="By transformers.js's name; the default one if none is named.")] = "",
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = "WebAssembly",
    side: Annotated[int, typer.Option(help="Of the picture, in pixels.")] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 4,
    arena: Annotated[bool, typer.Option(help="Let onnxruntime keep memory that it has freed, as by default.")] = True,
    level: Annotated[
        str, typer.Option(help="onnxruntime's graphOptimizationLevel. The demo page takes layout in WebAssembly.")
    ] = "all",
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """One greedy answer about a photograph, its logits compared with the CPU's."""
    picture = photograph().resize((side, side))
    with tempfile.TemporaryDirectory() as folder:
        adapter = adapter_of(icd, Path(folder))
        (Path(folder) / "site").mkdir()
        with open_browser(adapter) as browser, serve_artifacts(Path(folder) / "site", {"model": artifact}) as site:
            (site.root / "picture.png").write_bytes(png(picture))
            needs: dict[str, Any] = {
                "picture": f"{site.url}/picture.png",
                "question": QUESTION,
                "new_tokens": new_tokens,
                "session_options": {"graphOptimizationLevel": level},
            }
            if not arena:
                needs["session_options"] |= {"enableCpuMemArena": False, "enableMemPattern": False}
            with Peaks() as peaks:
                result = call(browser, site, "answer", "model", device, precision, **needs)
    if "error" in result:
        console.print(f"{artifact}, {device}: {result['error']} (WebAssembly holds {result['heap'] / 1e9:.2f} GB)")
        raise typer.Exit(1)
    model = Qwen3VL.load(artifact, precision=precision, check=False)
    asked: list[Any] = [Image(picture), QUESTION]
    prepared = model.prepare([as_messages(asked)])
    start = time.perf_counter()
    steps = list(model.generate_steps(prepared, len(result["tokens"]), GREEDY, stop_ids=frozenset()))
    logits = np.concatenate([from_json(row) for row in result["logits"]])
    same = common_steps(result["tokens"], [int(step.tokens[0]) for step in steps])
    closeness = logit_closeness(logits[:same], np.concatenate([step.logits for step in steps])[:same])
    figures = {
        "device": device,
        "adapter": "none" if device == "WebAssembly" else "SwiftShader" if icd is None else icd.stem,
        "prompt_tokens": result["prompt"],
        "cpu_prompt_tokens": prepared.input_ids.shape[1],
        "arena": arena,
        "level": level,
        "load_seconds": result["seconds"]["load"],
        "first_token_seconds": result["steps"][0],
        "tower_seconds": result["seconds"]["vision_encoder"],
        "next_token_seconds": float(np.mean(result["steps"][1:])),
        "peak_bytes": peaks.bytes,
        "process_seconds": peaks.seconds,
        "webassembly_bytes": result["heap"],
        "tokens": result["tokens"],
        "cpu_tokens": [int(step.tokens[0]) for step in steps],
        "cpu_seconds": time.perf_counter() - start,
        "max_abs": closeness["max_abs"],
        "peak_logit": closeness["peak"],
        "steps_compared": same,
    }
    console.print(json.dumps(figures, indent=1))
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


@app.command()
def native(
    artifact: Path,
    python: Annotated[Path, typer.Option(help="A Python with onnxruntime-webgpu.")],
    icd: Icd = None,
    precision: Annotated[str, typer.Option(help="By transformers.js's name; the default one if none is named.")] = "",
    side: Annotated[int, typer.Option(help="Of the picture, in pixels.")] = 512,
) -> None:
    """The graphs that an answer about a photograph runs, by the WebGPU provider without a browser."""
    model = Qwen3VL.load(artifact, precision=precision, check=False)
    asked: list[Any] = [Image(photograph().resize((side, side))), QUESTION]
    runs = runs_of(model, model.prepare([as_messages(asked)]), rows=1)
    with tempfile.TemporaryDirectory() as folder:
        result = compute_natively(python, adapter_of(icd, Path(folder)), model, runs)
    console.print(describe(artifact.name, model, runs, "Python", result))
    if not isinstance(result, str):
        console.print(json.dumps(result.seconds))
    wrong = complaints(model, runs, WEBGPU, result, has_half=icd is not None)
    for line in wrong:
        console.print(f"WRONG: {line}")
    raise typer.Exit(bool(wrong))


@app.command()
def checkpoint(directory: Path, size: Annotated[str, typer.Option(help="A published size.")] = "2b") -> None:
    """Write a random checkpoint of a published size, with the published tokenizer, to build an artifact from."""
    tokenizer = published_tokenizer_file()
    write_published_checkpoint(directory, f"{size}-instruct", tokenizer, layers=None, depth=None, full_width=True)


def built(folder: Path, only: Sequence[str]) -> dict[str, Path]:
    """Artifacts by name, all or some: the tiny checkpoint in every precision that any recipe has and by some recipes of
    its own, and one whose activations float16 hardly holds."""
    base = folder / "tiny-in.yaml"
    base.write_text(f"extends: {RECIPES / 'tiny.yaml'}\n", "utf-8")
    sources = {name: (name, TINY) for name in list_precisions() if name != CARRIED}
    sources |= {f"{LOUD}-{name}": (name, folder / LOUD) for name in ("fp16", "web")}
    write_loud_checkpoint(folder / LOUD)
    artifacts = {name: build_once(name) for name in SIDE_BY_SIDE if not only or name in only}
    for name, (precision, checkpoint) in sources.items():
        if not only or name in only:
            recipe = load_recipe(base.with_name(f"{base.stem}-{precision}.yaml"))
            artifacts[name] = build(recipe, checkpoint=str(checkpoint), out=folder / name, log=lambda line: None)
    return artifacts


def compute_natively(python: Path, adapter: Adapter, model: Qwen3VL, runs: Mapping[str, Run]) -> Computed | str:
    """What the WebGPU provider makes of the runs without a browser, or what it says why it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = {}
        for stage, run in runs.items():
            inputs: dict[str, Any] = {**run.inputs}
            np.savez(Path(folder) / f"{stage}.npz", **inputs)
            path = str(model.artifact.graph_path(run.graph))
            jobs[stage] = {"graph": path, "output": run.output, "keeps": run.graph == DECODER}
        (Path(folder) / "runs.json").write_text(json.dumps(jobs))
        command = [str(python), str(NATIVE_RUNS), folder]
        environment = {**os.environ, **adapter.environment}
        environment.pop("PYTHONPATH", None)
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            return result.stderr.strip().splitlines()[-1]
        outputs = {stage: np.load(Path(folder) / f"{stage}.npy") for stage in runs}
        return Computed(outputs, json.loads((Path(folder) / "seconds.json").read_text()))


def describe(name: str, model: Qwen3VL, runs: Mapping[str, Run], where: str, result: Computed | str) -> str:
    """One line: seconds, and the largest difference of each stage; or why it did not load."""
    line = f"{suffixed(name, model.artifact.precision):22} {where:12}"
    if isinstance(result, str):
        return f"{line} {' '.join(result.split())[:120]}"
    stages = judge_runs(model, runs, result)
    numbers = (
        f"{stage.stage} {stage.measures.get('max_abs', stage.measures.get('differences')):.1e}" for stage in stages
    )
    seconds = sum(result.seconds.values()) - result.seconds["load"]
    return f"{line} load {result.seconds['load']:.1f} s, run {seconds:.1f} s: {', '.join(numbers)}"


def adapter_of(icd: Path | None, folder: Path) -> Adapter:
    """SwiftShader, or the driver of a file behind a layer that is built in the folder."""
    return SWIFTSHADER if icd is None else disguised(icd, folder)


@dataclass
class Peaks:
    """What Chromium's processes took while it is entered: most memory in bytes, and seconds of CPU, of any process of a
    kind: `renderer`, `gpu-process`."""

    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has ended
                    kind = KIND.search((process / "cmdline").read_text())
                    peak = PEAK.search((process / "status").read_text())
                    if kind and peak:
                        self.bytes[kind[1]] = max(self.bytes.get(kind[1], 0), int(peak[1]) * 1024)
                        self.seconds[kind[1]] = max(self.seconds.get(kind[1], 0.0), cpu_seconds(process))


def cpu_seconds(process: Path) -> float:
    """Of all threads of a process, a directory of /proc, in its own code and in the kernel."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def common_steps(tokens: list[int], expected: list[int]) -> int:
    """Steps at which both sides have the same history: one more than they have tokens in common."""
    same = next((index for index, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1]), None)
    return len(tokens) if same is None else same + 1


if __name__ == "__main__":
    app()
