"""The pipeline: a recipe and a checkpoint to an artifact directory. `build` and `export_graph` tell the whole story.

recipe -> checkpoint -> trace -> simplify -> optimize -> quantize (-> calibrate) -> weights -> artifact

Every graph is a finished skeleton before the first weight is read: what the artifact takes on disk is known by then.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from .. import contract
from ..artifact import CHECKPOINT_FILES, GRAPH_DIR, NEEDED_FILES
from ..errors import BuildError, CheckpointError
from ..output import resumable_directory
from ..packaging import package, storage
from ..recipe.model import Recipe
from ..recipe.quantize import Quantize
from .calibration import plan_calibrations
from .checkpoint import Checkpoint
from .manifest import Entries, graph_entry, write_manifest
from .plan import check_space, layouts_of, planned_files
from .progress import writing
from .resume import open_journal
from .skeletons import KEEP, Log, Skeleton, inputs_of, lenders_first, open_for, shared_graphs, skeleton, skeletons
from .stages import Stages
from .submodules import Submodule
from .weights import Progress, WeightFile, attach
from .weights.errors import report_errors

STAGES_DIR = "stages"
CALIBRATED_DIR = "calibrated"  # gone before the build ends
PREPROCESSOR = "preprocessor_config.json"


def build(
    recipe: Recipe,
    *,
    checkpoint: str | None = None,
    out: Path | None = None,
    keep_stages: bool = False,
    force: bool = False,
    resume: bool = False,
    log: Log = print,
) -> Path:
    """Build the artifact that `recipe` describes.

    Args:
        checkpoint: directory or repository to use instead of the recipe's.
        out: directory to write; `artifacts/<name>` unless given.
        keep_stages: also keep every stage of every graph, runnable, under `stages/`.
        force: replace the artifact at `out`, and what an interrupted build of it left.
        resume: continue an interrupted build of it, if there is one and it wrote what this one would.
        log: takes one line of progress.

    Returns:
        The artifact directory.

    Raises:
        Qwen3VLExportError: bad checkpoint, output directory taken, disk full, or a graph that fails its checks.
    """
    out = out if out is not None else Path("artifacts") / recipe.name
    with resumable_directory(out, force, resume, inputs_of(recipe, checkpoint)) as directory:
        opened = open_for(recipe, checkpoint)
        log(f"checkpoint {opened.source} ({opened.revision}), {len(opened.tensors)} tensors")
        calibrations = plan_calibrations(recipe, opened, directory / CALIBRATED_DIR, log)
        prompts = {precision: one.prompts.sha256 for precision, one in calibrations.items()}
        journal = open_journal(directory, recipe, opened, prompts, log)
        provenance = in_background(opened.provenance)  # hashes gigabytes while this thread traces
        keep_in = directory / STAGES_DIR if keep_stages else None
        found = skeletons(recipe, opened, log, keep_in, calibrations)
        planned = planned_files(found, opened, storage(recipe.packaging.runtimes))
        check_space(out, sum(file.bytes for file in planned) - journal.bytes)
        graphs = directory / GRAPH_DIR
        graphs.mkdir(exist_ok=True)
        entries: Entries = {name: {} for name in recipe.every_precision}
        layouts = layouts_of(found, storage(recipe.packaging.runtimes))
        with ExitStack() as files:
            data = {stem: files.enter_context(WeightFile(graphs, one, journal)) for stem, one in layouts.items()}
            progress = files.enter_context(writing(sum(one.weights for one in planned), journal.bytes, log))
            for one in lenders_first(found):
                graph, file, own = one.graph.name, data[one.data_stem], recipe.at(one.precision)
                model = write_graph(one, opened, file, progress)
                entries[one.precision][graph] = graph_entry(one, model, file, own.compute_dtype)
                if graph == contract.DECODER and one.precision in calibrations:
                    entries[one.precision][graph]["calibration"] = calibrations[one.precision].record
                report_errors(one.name, own.quantize(graph).method, file.errors, log)
        shutil.rmtree(directory / CALIBRATED_DIR, ignore_errors=True)
        for one in found:
            check_graph(graphs / f"{one.name}.onnx")
        for precision, graph in shared_graphs(recipe, opened.facts):
            entries[precision][graph] = entries[recipe.written_for(precision, graph)][graph]
        copy_settings(opened, recipe, directory)
        names = package(directory, recipe.packaging.runtimes, opened.facts, entries)
        write_manifest(directory, recipe, opened, entries, provenance.result(), names)
    log(f"{out}: {len(found)} graphs, every one passes onnx.checker and strict shape inference")
    return out


def export_graph(
    submodule: Submodule,
    checkpoint: Checkpoint,
    target: str,
    dtype: torch.dtype,
    data: WeightFile,
    stages: Stages,
    plan: Quantize = KEEP,
    stored: ir.DataType | None = None,
) -> ir.Model:
    """One graph from its submodule to its `.onnx` file beside `data`; the arguments are those of `skeleton`."""
    return write_graph(skeleton(submodule, target, dtype, stages, plan, stored), checkpoint, data)


def write_graph(
    one: Skeleton, checkpoint: Checkpoint, data: WeightFile, progress: Progress = lambda _: None
) -> ir.Model:
    """A skeleton's weights into `data`, and the graph to its `.onnx` file beside it."""
    model = one.stages.done("written", attach(one.model, one.graph, checkpoint, data, progress))
    ir.save(model, data.directory / f"{one.name}.onnx")
    return model


def check_graph(path: Path) -> None:
    """onnx.checker with strict shape inference, over the file as it lies on disk.

    Raises:
        BuildError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"{path.name}: fails onnx.checker ({error})", "This is a bug; please report it") from error


def copy_settings(checkpoint: Checkpoint, recipe: Recipe, directory: Path) -> None:
    """Copy the checkpoint's tokenizer, template, processor settings and licence; a fixed encoder's size goes into the
    processor settings, so that any processor resizes to that many pixels.

    Raises:
        CheckpointError: a file that a runtime needs is missing.
    """
    for name in NEEDED_FILES:
        if not (checkpoint.root / name).is_file():
            raise CheckpointError(f"{checkpoint.root}: {name} is missing", "Download the checkpoint again")
    present = [checkpoint.root / name for name in CHECKPOINT_FILES if (checkpoint.root / name).is_file()]
    for file in [*present, *sorted(checkpoint.root.glob("LICENSE*"))]:
        shutil.copyfile(file, directory / file.name)
    if recipe.vision.grid == "fixed":
        height, width = recipe.vision.sizes[0]
        path = directory / PREPROCESSOR
        settings = json.loads(path.read_text("utf-8"))
        settings["size"] = {"shortest_edge": height * width, "longest_edge": height * width}
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def in_background(call: Callable[[], Any]) -> Future[Any]:
    """What `call` returns or raises, sooner or later. It is not waited for when something else stops the build."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result
