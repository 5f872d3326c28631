"""Skeletons: every graph of a recipe finished but for its bytes, from the headers of a checkpoint.

recipe, checkpoint -> trace -> simplify -> optimize -> quantize

A skeleton's weights are inputs that say where their bytes will come from (`weights/layouts.py`), so that what a build
writes is known before it reads a weight. Knows nothing about files, except to keep stages for who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from . import contract
from .checkpoint import Checkpoint, open_checkpoint
from .contract import Facts, Graph
from .errors import RecipeError
from .lowering import lower
from .lowering.experts import OLDEST_ONNXRUNTIME, OLDEST_WITH_ACCURACY_LEVEL
from .optimize import optimize
from .packaging import storage
from .quantize import quantize, store_as
from .recipe.model import Recipe
from .recipe.quantize import KeepPrecision, Quantize
from .rewrites.head import read_table
from .simplify import simplify
from .stages import Stages
from .submodules import Submodule, build_submodule, check_tensors
from .trace import trace
from .weights import WeightFile, attach

Log = Callable[[str], None]
KEEP = KeepPrecision()


def open_for(recipe: Recipe, checkpoint: str | None) -> Checkpoint:
    """The checkpoint the user named, else the recipe's."""
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    if recipe.checkpoint_dir is not None:
        return open_checkpoint(str(recipe.checkpoint_dir), name=recipe.to_json_dict()["checkpoint"]["source"])
    return open_checkpoint(recipe.checkpoint.source, recipe.checkpoint.revision)


@dataclass
class Skeleton:
    """One graph without its bytes: its contract, the model, and the stages it went through."""

    graph: Graph
    model: ir.Model
    stages: Stages


def skeletons(recipe: Recipe, checkpoint: Checkpoint, log: Log, keep_in: Path | None = None) -> list[Skeleton]:
    """Every graph of a recipe, from the checkpoint's headers alone.

    Args:
        keep_in: where every stage of every graph is kept, runnable; None keeps none.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not part of this architecture.
    """
    dtype: torch.dtype = getattr(torch, recipe.compute_dtype)
    stored = ir.DataType.BFLOAT16 if recipe.dtype == "bfloat16" else None
    check_onnxruntime(recipe, checkpoint.facts)
    check_tensors(checkpoint, dtype)
    found = []
    for name, grid in graphs_of(recipe, checkpoint.facts):
        submodule = build_submodule(checkpoint, name, recipe.target, dtype, grid)
        keep = keep_under(keep_in, submodule.graph, checkpoint, recipe) if keep_in is not None else None
        stages = Stages(name, log, keep)
        lent = name == contract.DECODER and lends_table(recipe, checkpoint)
        found.append(skeleton(submodule, recipe.target, dtype, stages, recipe.quantize(name), stored, lent))
    return found


def skeleton(
    submodule: Submodule,
    target: str,
    dtype: torch.dtype,
    stages: Stages,
    plan: Quantize = KEEP,
    stored: ir.DataType | None = None,
    lent: bool = False,
) -> Skeleton:
    """One graph from its submodule to its finished skeleton.

    Args:
        plan: how its products or its table are quantized.
        stored: dtype in which weights lie on disk, if not the one that is computed with.
        lent: its output head reads the embeddings' token table where that lies.
    """
    model = stages.done("traced", trace(submodule, dtype))
    model = stages.done("simplified", simplify(model))
    model = stages.done("optimized", optimize(model, target, partial(stages.step, "optimized")))
    if plan.method != "none":
        model = stages.done("quantized", quantize(model, plan, target))
    if lent:
        model = stages.done("shared", read_table(model))
    if stored is not None:
        model = stages.done("stored", store_as(model, stored))
    return Skeleton(submodule.graph, model, stages)


def check_onnxruntime(recipe: Recipe, facts: Facts) -> None:
    """Hold what the recipe promises against what its graphs will need.

    Raises:
        RecipeError: `min_onnxruntime` names a version that cannot compute experts.
    """
    if facts.model_type != "qwen3_vl_moe" or recipe.target != "ort":
        return
    chosen = getattr(recipe.quantize(contract.DECODER), "accuracy_level", 0)
    needed = OLDEST_WITH_ACCURACY_LEVEL if chosen else OLDEST_ONNXRUNTIME
    if tuple(map(int, recipe.min_onnxruntime.split("."))) < tuple(map(int, needed.split("."))):
        raise RecipeError(
            f"{recipe.name}: min_onnxruntime is {recipe.min_onnxruntime}, a mixture of experts on the ort target needs "
            f"onnxruntime {needed}{' with this accuracy_level' if chosen else ''}",
            f'Write min_onnxruntime: "{needed}"',
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


def lends_table(recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether the decoder's output head is the token table of a graph beside it, whose files it may read."""
    table = contract.EMBED_TOKENS in recipe.graphs or contract.EMBEDDINGS in recipe.graphs
    return table and bool(checkpoint.config.tie_word_embeddings) and not storage(recipe.packaging.runtimes).own_data


def lenders_first(found: Sequence[Skeleton]) -> list[Skeleton]:
    """Skeletons in the order in which their weights are placed: the token table before the head that may read it."""
    return sorted(found, key=lambda one: data_stem(one.graph.name) != contract.EMBED_TOKENS)


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
