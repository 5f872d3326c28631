"""The pipeline: a recipe and a checkpoint to an artifact directory. `build` and `export_graph` tell the whole story.

recipe -> checkpoint -> trace -> simplify -> optimize -> quantize -> weights -> artifact

Every graph is a finished skeleton before the first weight is read: what the artifact takes on disk is known by then.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from . import contract
from .artifact import CHECKPOINT_FILES, GRAPH_DIR, MANIFEST, Encoder, FileRecord, Manifest
from .checkpoint import Checkpoint
from .contract import Graph
from .errors import BuildError, CheckpointError
from .hash_cache import sha256_file
from .output import whole_directory
from .packaging import package
from .plan import check_space, planned_files
from .recipe.model import Recipe
from .recipe.quantize import Quantize
from .skeletons import KEEP, Log, Skeleton, data_stem, graphs_of, open_for, skeleton, skeletons
from .stages import Stages, tool_versions
from .submodules import Submodule
from .weights import WeightFile, attach
from .weights.errors import tell_errors, weight_errors

STAGES_DIR = "stages"
PREPROCESSOR = "preprocessor_config.json"
NEEDED_FILES = ("config.json", "generation_config.json", PREPROCESSOR, "tokenizer.json", "tokenizer_config.json")
GRID_RULES = {"dynamic": contract.ANY_GRID, "fixed": contract.ONLY_GRID, "buckets": contract.BUCKET_RULE}


def build(
    recipe: Recipe,
    *,
    checkpoint: str | None = None,
    out: Path | None = None,
    keep_stages: bool = False,
    force: bool = False,
    log: Log = print,
) -> Path:
    """Build the artifact that `recipe` describes.

    Args:
        checkpoint: directory or repository to use instead of the recipe's.
        out: directory to write; `artifacts/<name>` unless given.
        keep_stages: also keep every stage of every graph, runnable, under `stages/`.
        force: replace `out` if it is there.
        log: takes one line of progress.

    Returns:
        The artifact directory.

    Raises:
        Qwen3VLExportError: bad checkpoint, output directory taken, disk full, or a graph that fails its checks.
    """
    out = out if out is not None else Path("artifacts") / recipe.name
    with whole_directory(out, force) as directory:
        opened = open_for(recipe, checkpoint)
        log(f"checkpoint {opened.source} ({opened.revision}), {len(opened.tensors)} tensors")
        keep_in = directory / STAGES_DIR if keep_stages else None
        found = skeletons(recipe, opened, log, keep_in)
        check_space(out, sum(file.bytes for file in planned_files(found, opened)))
        graphs = directory / GRAPH_DIR
        graphs.mkdir()
        entries: dict[str, Any] = {}
        with ExitStack() as files:
            stems = {data_stem(one.graph.name) for one in found}
            data = {stem: files.enter_context(WeightFile.create(graphs, stem)) for stem in stems}
            for one in found:
                graph, file = one.graph, data[data_stem(one.graph.name)]
                model = write_graph(one, opened, file)
                entries[graph.name] = graph_entry(graph, model, file, one.stages, recipe.compute_dtype)
                tell_errors(graph.name, recipe.quantize(graph.name).method, file.errors, log)
        for name in entries:
            check_graph(graphs / f"{name}.onnx")
        copy_settings(opened, recipe, directory)
        package(directory, recipe.packaging.runtimes, opened.facts, entries)
        write_manifest(directory, recipe, opened, entries)
    log(f"{out}: {len(entries)} graphs, every one passes onnx.checker and strict shape inference")
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


def write_graph(one: Skeleton, checkpoint: Checkpoint, data: WeightFile) -> ir.Model:
    """A skeleton's weights into `data`, and the graph to its `.onnx` file beside it."""
    model = one.stages.done("written", attach(one.model, one.graph, checkpoint, data))
    ir.save(model, data.path.with_name(f"{one.graph.name}.onnx"))
    return model


def graph_entry(graph: Graph, model: ir.Model, data: WeightFile, stages: Stages, dtype: str) -> dict[str, Any]:
    """What the manifest says of one graph."""
    tensors = {
        kind: {t.name: {"dtype": dtype if t.dtype == "float" else t.dtype, "shape": list(t.shape)} for t in declared}
        for kind, declared in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
    return {
        "file": f"{GRAPH_DIR}/{graph.name}.onnx",
        "data": [f"{GRAPH_DIR}/{data.path.name}"],
        "opset": dict(sorted(model.graph.opset_imports.items())),
        "stages": stages.records,
        **({"weight_errors": weight_errors(data.errors)} if data.errors else {}),
        **tensors,
    }


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


def write_manifest(directory: Path, recipe: Recipe, checkpoint: Checkpoint, graphs: dict[str, Any]) -> None:
    """Hash every file and write `manifest.json`, the last file of a build."""
    encoders = [
        (name, grid) for name, grid in graphs_of(recipe, checkpoint.facts) if data_stem(name) == contract.VISION_ENCODER
    ]
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    manifest = Manifest(
        name=recipe.name,
        recipe=recipe.to_json_dict(),
        checkpoint=checkpoint.provenance(),
        facts=checkpoint.facts,
        encoders=tuple(Encoder(name, grid) for name, grid in encoders),
        encoder_rule=GRID_RULES[recipe.vision.grid],
        graphs=graphs,
        tools=tool_versions(),
        min_onnxruntime=recipe.min_onnxruntime,
        files={
            path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, sha256_file(path)) for path in files
        },
    )
    (directory / MANIFEST).write_text(manifest.to_json(), "utf-8")
