"""The pipeline: a recipe and a checkpoint to an artifact directory, in three acts. Read `build` first.

    prepare   recipe -> checkpoint -> trace -> simplify -> optimize -> quantize (-> calibrate)
    write     weights
    finish    checks -> settings -> packaging -> manifest: the artifact

Every graph is a finished skeleton before the first weight is written: the size of the artifact is known by then.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from ..contract import DECODER, VISION_ENCODER
from ..errors import BuildError
from ..packaging import storage_rules, write_packaging
from ..promise import GRAPH_DIR
from ..recipe.model import Recipe
from ..recipe.quantize import MethodSettings
from .calibration import plan_calibrations
from .checkpoint import Checkpoint
from .manifest import Entries, graph_entry, write_manifest
from .plan import PlannedFile, check_space, file_placements, planned_files
from .progress import show_progress
from .resume import open_journal
from .settings import check_settings, write_settings
from .skeletons import (
    UNQUANTIZED,
    Log,
    Skeleton,
    build_skeleton,
    build_skeletons,
    inputs_of,
    open_recipe_checkpoint,
    recipe_for,
    shared_graphs,
    sort_for_writing,
)
from .smoothing import plan_smoothings
from .stages import Stages
from .submodules import Submodule
from .unfinished import resumable_directory
from .weights import Progress, WeightFile, attach
from .weights.errors import report_errors
from .weights.journal import Journal

STAGES_DIR = "stages"
CALIBRATED_DIR = "calibrated"  # removed before the build ends


def build(
    recipe: Recipe,
    *,
    checkpoint: str | None = None,
    adapters: Sequence[str] = (),
    out: Path | None = None,
    keep_stages: bool = False,
    force: bool = False,
    resume: bool = False,
    log: Log = print,
) -> Path:
    """Build the artifact that `recipe` describes.

    Args:
        checkpoint: directory or repository to use instead of the recipe's.
        adapters: directories or repositories of LoRA adapters to merge, instead of the recipe's.
        out: directory to write; default `artifacts/<name>`.
        keep_stages: also keep every stage of every graph, runnable, under `stages/`.
        force: replace the artifact at `out`, and anything an interrupted build of it left.
        resume: continue an interrupted build, if there is one and it was writing the same artifact.
        log: takes one line of progress.

    Returns:
        The artifact directory.

    Raises:
        Qwen3VLExportError: bad checkpoint, output directory taken, disk full, or a graph that fails its checks.
    """
    out = out if out is not None else Path("artifacts") / recipe.name
    with resumable_directory(out, force, resume, inputs_of(recipe, checkpoint, adapters)) as directory:
        # recipe -> checkpoint -> trace -> simplify -> optimize -> quantize
        opened = open_recipe_checkpoint(recipe, checkpoint, adapters)
        recipe = recipe_for(recipe, opened, log)
        prepared = prepare_build(recipe, opened, directory, keep_stages, log)
        check_space(out, prepared.bytes_to_write)
        # -> weights
        entries = write_graphs(prepared, log)
        # -> artifact
        finish_artifact(prepared, entries)
    log(f"{out}: {len(prepared.skeletons)} graphs, every one passes onnx.checker and strict shape inference")
    return out


def prepare_build(
    recipe: Recipe, checkpoint: Checkpoint, directory: Path, keep_stages: bool, log: Log
) -> PreparedBuild:
    """The first act: trace, simplify, optimize and quantize every graph, on the headers of the checkpoint."""
    log(f"checkpoint {checkpoint.source} ({checkpoint.revision}), {len(checkpoint.tensors)} tensors")
    for adapter in checkpoint.adapters:
        log(f"adapter {adapter.source} ({adapter.revision}), {len(adapter.stored)} tensors")
    check_settings(checkpoint, recipe, log)
    calibrations = plan_calibrations(recipe, checkpoint, directory / CALIBRATED_DIR, log)
    smoothings = plan_smoothings(recipe, checkpoint, log)
    prompts = {
        f"{graph}, {precision}": plan.prompts.sha256
        for graph, plans in ((DECODER, calibrations), (VISION_ENCODER, smoothings))
        for precision, plan in plans.items()
        if plan.prompts is not None
    }
    journal = open_journal(directory, recipe, checkpoint, prompts, log)
    provenance = run_in_background(checkpoint.provenance)  # hashes gigabytes while this thread traces
    stages_dir = directory / STAGES_DIR if keep_stages else None
    skeletons = build_skeletons(recipe, checkpoint, log, stages_dir, calibrations, smoothings)
    files = planned_files(skeletons, checkpoint, storage_rules(recipe.packaging.runtimes))
    return PreparedBuild(recipe, checkpoint, directory, journal, skeletons, files, provenance)


def write_graphs(prepared: PreparedBuild, log: Log) -> Entries:
    """The second act: stream the weights and write every graph beside them; returns their manifest entries."""
    recipe, journal = prepared.recipe, prepared.journal
    directory = prepared.directory / GRAPH_DIR
    directory.mkdir(exist_ok=True)
    entries: Entries = {precision: {} for precision in recipe.every_precision}
    placements = file_placements(prepared.skeletons, storage_rules(recipe.packaging.runtimes))
    with ExitStack() as stack:
        files = {
            stem: stack.enter_context(WeightFile(directory, placement, journal))
            for stem, placement in placements.items()
        }
        weight_bytes = sum(file.weights for file in prepared.files)
        progress = stack.enter_context(show_progress(weight_bytes, journal.bytes, log))
        for skeleton in sort_for_writing(prepared.skeletons):
            variant, file = recipe.at(skeleton.precision), files[skeleton.data_stem]
            model = write_graph(skeleton, prepared.checkpoint, file, progress)
            entry = graph_entry(skeleton, model, file, variant.compute_dtype)
            entries[skeleton.precision][skeleton.graph.name] = entry
            report_errors(skeleton.name, variant.quantization_of(skeleton.graph.name).method, file.errors, log)
    return entries


def finish_artifact(prepared: PreparedBuild, entries: Entries) -> None:
    """The third act: check every graph, add settings and what the runtimes need, and write the manifest last."""
    recipe, checkpoint, directory = prepared.recipe, prepared.checkpoint, prepared.directory
    shutil.rmtree(directory / CALIBRATED_DIR, ignore_errors=True)
    for skeleton in prepared.skeletons:
        check_graph(directory / GRAPH_DIR / f"{skeleton.name}.onnx")
    for precision, graph in shared_graphs(recipe, checkpoint.facts):
        entries[precision][graph] = entries[recipe.file_precision(precision, graph)][graph]
    write_settings(checkpoint, recipe, directory)
    packaging = recipe.packaging
    second_names = write_packaging(directory, packaging.runtimes, checkpoint.facts, entries, packaging.provider)
    write_manifest(directory, recipe, checkpoint, entries, prepared.provenance.result(), second_names)


@dataclass(frozen=True)
class PreparedBuild:
    """A build before its first weight is written.

    Attributes:
        directory: where the artifact is put together.
        journal: the weights that an interrupted build already wrote.
        skeletons: every graph, finished but for its weights.
        files: the files to be written.
        provenance: what the manifest says about the checkpoint, which is hashed in the background.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    directory: Path
    journal: Journal
    skeletons: Sequence[Skeleton]
    files: Sequence[PlannedFile]
    provenance: Future[dict[str, Any]]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the artifact that are not on the disk yet."""
        return sum(file.bytes for file in self.files) - self.journal.bytes


def export_graph(
    submodule: Submodule,
    checkpoint: Checkpoint,
    target: str,
    dtype: torch.dtype,
    file: WeightFile,
    stages: Stages,
    quantization: MethodSettings = UNQUANTIZED,
    storage_dtype: ir.DataType | None = None,
) -> ir.Model:
    """One graph from its submodule to its `.onnx` file beside `file`; the arguments are those of `build_skeleton`."""
    return write_graph(build_skeleton(submodule, target, dtype, stages, quantization, storage_dtype), checkpoint, file)


def write_graph(
    skeleton: Skeleton, checkpoint: Checkpoint, file: WeightFile, progress: Progress = lambda _: None
) -> ir.Model:
    """Write a skeleton's weights into `file`, and the graph to its `.onnx` file beside it."""
    model = skeleton.stages.record("written", attach(skeleton.model, skeleton.graph, checkpoint, file, progress))
    ir.save(model, file.directory / f"{skeleton.name}.onnx")
    return model


def check_graph(path: Path) -> None:
    """Run onnx.checker with strict shape inference over a file on disk.

    Raises:
        BuildError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"{path.name}: fails onnx.checker ({error})", "This is a bug; please report it") from error


def run_in_background(call: Callable[[], Any]) -> Future[Any]:
    """The future result of `call`. Nobody waits for it if something else stops the build."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result
