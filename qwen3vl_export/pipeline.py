"""The pipeline: a recipe and a checkpoint to an artifact directory. `build` and `export_graph` tell the whole story.

recipe -> checkpoint -> trace -> simplify -> optimize -> quantize -> weights -> artifact
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from . import contract
from .artifact import CHECKPOINT_FILES, GRAPH_DIR, MANIFEST, Encoder, FileRecord, Manifest
from .checkpoint import Checkpoint, open_checkpoint
from .contract import Facts, Graph
from .errors import BuildError, CheckpointError, RecipeError
from .hash_cache import sha256_file
from .lowering import lower
from .lowering_experts import OLDEST_ONNXRUNTIME
from .optimize import optimize
from .output import whole_directory
from .packaging import package
from .quantize import quantize, store_as
from .recipe_model import Recipe
from .recipe_quantize import KeepPrecision, Quantize
from .simplify import simplify
from .stages import Stages, tool_versions
from .submodules import Submodule, build_submodule, check_tensors
from .trace import trace
from .weight_errors import tell_errors, weight_errors
from .weights import WeightFile, attach

Log = Callable[[str], None]

STAGES_DIR = "stages"
PREPROCESSOR = "preprocessor_config.json"
NEEDED_FILES = ("config.json", "generation_config.json", PREPROCESSOR, "tokenizer.json", "tokenizer_config.json")
KEEP = KeepPrecision()
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
        dtype: torch.dtype = getattr(torch, recipe.compute_dtype)
        stored = ir.DataType.BFLOAT16 if recipe.dtype == "bfloat16" else None
        check_onnxruntime(recipe, opened.facts)
        check_tensors(opened, dtype)
        graphs = directory / GRAPH_DIR
        graphs.mkdir()
        entries: dict[str, Any] = {}
        with ExitStack() as files:
            stems = {data_stem(name) for name, _ in graphs_of(recipe, opened.facts)}
            data = {stem: files.enter_context(WeightFile.create(graphs, stem)) for stem in stems}
            for name, grid in graphs_of(recipe, opened.facts):
                submodule = build_submodule(opened, name, recipe.target, dtype, grid)
                keep = keep_under(directory / STAGES_DIR, submodule.graph, opened, recipe) if keep_stages else None
                stages = Stages(name, log, keep)
                file = data[data_stem(name)]
                plan = recipe.quantize(name)
                model = export_graph(submodule, opened, recipe.target, dtype, file, stages, plan, stored)
                entries[name] = graph_entry(submodule.graph, model, file, stages, recipe.compute_dtype)
                tell_errors(name, plan.method, file.errors, log)
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
    """One graph from its submodule to its `.onnx` file beside `data`.

    Args:
        plan: how its products or its table are quantized.
        stored: dtype in which weights lie on disk, if not the one that is computed with.
    """
    model = stages.done("traced", trace(submodule, dtype))
    model = stages.done("simplified", simplify(model))
    model = stages.done("optimized", optimize(model, target))
    if plan.method != "none":
        model = stages.done("quantized", quantize(model, plan, target))
    if stored is not None:
        model = stages.done("stored", store_as(model, stored))
    model = stages.done("written", attach(model, submodule.graph, checkpoint, data))
    ir.save(model, data.path.with_name(f"{submodule.graph.name}.onnx"))
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


def open_for(recipe: Recipe, checkpoint: str | None) -> Checkpoint:
    """The checkpoint the user named, else the recipe's."""
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    if recipe.checkpoint_dir is not None:
        return open_checkpoint(str(recipe.checkpoint_dir), name=recipe.to_json_dict()["checkpoint"]["source"])
    return open_checkpoint(recipe.checkpoint.source, recipe.checkpoint.revision)


def check_onnxruntime(recipe: Recipe, facts: Facts) -> None:
    """Hold what the recipe promises against what its graphs will need.

    Raises:
        RecipeError: `min_onnxruntime` names a version that cannot compute experts.
    """
    promised, needed = (tuple(map(int, v.split("."))) for v in (recipe.min_onnxruntime, OLDEST_ONNXRUNTIME))
    if facts.model_type == "qwen3_vl_moe" and recipe.target == "ort" and promised < needed:
        raise RecipeError(
            f"{recipe.name}: min_onnxruntime is {recipe.min_onnxruntime}, a mixture of experts needs onnxruntime "
            f"{OLDEST_ONNXRUNTIME} on the ort target",
            f'Write min_onnxruntime: "{OLDEST_ONNXRUNTIME}"',
        )


def graphs_of(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The graphs a recipe asks for: name, and the bound grid of a fixed encoder in patches."""
    for name in recipe.graphs:
        grids = recipe.vision.patch_grids(facts.patch_size)
        if name != contract.VISION_ENCODER or recipe.vision.grid == "dynamic":
            yield name, None
        elif recipe.vision.grid == "fixed":
            yield name, grids[0]
        else:
            yield from ((contract.bucket_name(*grid), grid) for grid in grids)


def data_stem(graph: str) -> str:
    """Which weight file a graph reads: all encoders share one, so do both embedding heads."""
    if graph.startswith(contract.VISION_ENCODER):
        return contract.VISION_ENCODER
    return contract.EMBED_TOKENS if graph == contract.EMBEDDINGS else graph


def keep_under(
    directory: Path, graph: Graph, checkpoint: Checkpoint, recipe: Recipe
) -> Callable[[str, ir.Model], None]:
    """A function that stores a copy of a stage's skeleton, made runnable, as `<directory>/<stage>/<graph>.onnx`."""

    def keep(stage: str, model: ir.Model) -> None:
        folder = directory / stage
        folder.mkdir(parents=True, exist_ok=True)
        with WeightFile.create(folder, graph.name) as data:
            runnable = lower(recipe.target)(model.clone())
            ir.save(attach(runnable, graph, checkpoint, data), folder / f"{graph.name}.onnx")

    return keep


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
