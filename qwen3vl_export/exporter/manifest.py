"""The manifest of a build: an entry for each graph and the sha256 of every file.

Knows recipes, skeletons and finished files; nothing about how they were made.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import contract
from ..hash_cache import sha256_file
from ..manifest import MANIFEST, Encoder, FileRecord, Manifest
from ..promise import GRAPH_DIR
from ..recipe.model import DEFAULT, Recipe
from .checkpoint import Checkpoint
from .skeletons import Skeleton, data_stem, graphs_of
from .stages import tool_versions
from .weights import WORKERS, FilePlacement, WeightFile
from .weights.errors import summarize_errors

Entries = dict[str, dict[str, Any]]  # precision -> graph -> its manifest entry
GRID_RULES = {"dynamic": contract.ANY_GRID, "fixed": contract.ONLY_GRID, "buckets": contract.BUCKET_RULE}


def graph_entry(skeleton: Skeleton, model: ir.Model, file: WeightFile, dtype: str) -> dict[str, Any]:
    """The manifest's entry of one graph.

    Args:
        model: the graph as it was written.
        dtype: what "float" means in its contract.
    """
    graph, calibrated = skeleton.graph, skeleton.calibration or skeleton.smoothing
    prompts = calibrated.prompts if calibrated is not None else None
    tensors = {
        kind: {t.name: {"dtype": dtype if t.dtype == "float" else t.dtype, "shape": list(t.shape)} for t in declared}
        for kind, declared in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
    return {
        "file": f"{GRAPH_DIR}/{skeleton.name}.onnx",
        "data": [f"{GRAPH_DIR}/{name}" for name in file.placement.file_names],
        **({"shared": borrowed_tensors(model, file.placement)} if file.placement.borrowed_files else {}),
        "opset": dict(sorted(model.graph.opset_imports.items())),
        "stages": skeleton.stages.records,
        **({"weight_errors": summarize_errors(file.errors)} if file.errors else {}),
        **({"calibration": prompts.record} if prompts is not None else {}),
        **tensors,
    }


def borrowed_tensors(model: ir.Model, placement: FilePlacement) -> list[dict[str, Any]]:
    """For each file of another graph that this one reads: its name and the tensors read."""
    return [
        {
            "file": f"{GRAPH_DIR}/{name}",
            "tensors": sorted(
                tensor
                for tensor, value in model.graph.initializers.items()
                if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.location == name
            ),
        }
        for name in placement.borrowed_files
    ]


def write_manifest(
    directory: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    graphs: Entries,
    provenance: dict[str, Any],
    second_names: dict[str, str],
) -> None:
    """Hash every file and write `manifest.json`, the last file of a build."""
    encoders = [
        (name, grid) for name, grid in graphs_of(recipe, checkpoint.facts) if data_stem(name) == contract.VISION_ENCODER
    ]
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(WORKERS) as pool:
        hashes = dict(zip(files, pool.map(sha256_file, files), strict=True))
    manifest = Manifest(
        name=recipe.name,
        recipe=recipe.to_json_dict(),
        checkpoint=provenance,
        facts=checkpoint.facts,
        encoders=tuple(Encoder(name, grid) for name, grid in encoders),
        encoder_rule=GRID_RULES[recipe.vision.grid],
        graphs=graphs[DEFAULT],
        tools=tool_versions(),
        min_onnxruntime=recipe.min_onnxruntime,
        files={path.relative_to(directory).as_posix(): FileRecord(path.stat().st_size, hashes[path]) for path in files},
        precisions={
            name: {"recipe": recipe.at(name).to_json_dict(), "graphs": graphs[name]} for name in recipe.precisions
        },
        second_names=second_names,
    )
    (directory / MANIFEST).write_text(manifest.to_json(), "utf-8")
