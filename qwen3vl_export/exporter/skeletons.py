"""Skeletons: every graph of a recipe finished but for its bytes, from the headers of a checkpoint.

recipe, checkpoint -> trace -> simplify -> optimize -> quantize

A skeleton's weights are inputs that say where their bytes will come from (`weights/inputs.py`), so that what a build
writes is known before it reads a weight. Knows nothing about files, except to keep stages for who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir
import torch

from .. import contract
from ..artifact import suffixed
from ..contract import Facts, Graph
from ..errors import RecipeError
from ..packaging import storage
from ..promise import promised_graphs
from ..recipe.model import DEFAULT, Recipe
from ..recipe.quantize import KeepPrecision, Quantize
from .calibration import DecoderCalibration
from .calibration.results import use_results
from .checkpoint import Checkpoint, open_checkpoint
from .lowering import lower
from .lowering.experts import OLDEST_ONNXRUNTIME, OLDEST_WITH_ACCURACY_LEVEL
from .optimize import optimize
from .quantize import quantize, store_as
from .rewrites.rows import use_gemm
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


def inputs_of(recipe: Recipe, checkpoint: str | None) -> tuple[Path, ...]:
    """Files and directories that a build reads, one of them the checkpoint the user named."""
    return recipe.inputs if checkpoint is None else (*recipe.inputs, Path(checkpoint).expanduser())


@dataclass
class Skeleton:
    """One graph without its bytes: its contract, the model, and the stages it went through."""

    graph: Graph
    model: ir.Model
    stages: Stages
    precision: str = DEFAULT
    lender: str | None = None  # stem of the token table's files, if its output head may read them

    @property
    def name(self) -> str:
        """The stem of its file: `decoder_model_merged`, `decoder_model_merged_q4`."""
        return suffixed(self.graph.name, self.precision)

    @property
    def data_stem(self) -> str:
        """The stem of the weight files it shares with others of its kind and precision."""
        return suffixed(data_stem(self.graph.name), self.precision)


def skeletons(
    recipe: Recipe,
    checkpoint: Checkpoint,
    log: Log,
    keep_in: Path | None = None,
    calibrations: Mapping[str, DecoderCalibration] = MappingProxyType({}),
) -> list[Skeleton]:
    """Every graph of a recipe in every precision, from the checkpoint's headers alone; equal ones once.

    Args:
        keep_in: where every stage of every graph is kept, runnable; None keeps none.
        calibrations: of the decoder, by precision; carried out once its graph is quantized.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not part of this architecture.
    """
    found = []
    drawn: dict[tuple[str, torch.dtype], Skeleton] = {}  # up to quantization, where precisions of one dtype part
    for precision in recipe.every_precision:
        own = recipe.at(precision)
        dtype: torch.dtype = getattr(torch, own.compute_dtype)
        stored = ir.DataType.BFLOAT16 if own.dtype == "bfloat16" else None
        check_onnxruntime(own, checkpoint.facts)
        check_tensors(checkpoint, dtype)
        for graph, grid in graphs_of(own, checkpoint.facts):
            if recipe.written_for(precision, graph) != precision:
                continue
            submodule = build_submodule(checkpoint, graph, own.target, dtype, grid)
            name = suffixed(graph, precision)
            keep = keep_under(keep_in, name, submodule.graph, checkpoint, own) if keep_in is not None else None
            if (graph, dtype) not in drawn:
                drawn[graph, dtype] = draw(submodule, own.target, dtype, Stages(name, log, keep))
            one = drawn[graph, dtype]
            stages = Stages(name, log, keep, list(one.stages.records))
            found_by = calibrations.get(precision) if graph == contract.DECODER else None
            lender = table_stem(recipe, precision, checkpoint) if graph == contract.DECODER else None
            one = Skeleton(one.graph, one.model.clone(), stages, precision, lender)
            found.append(packed(one, own.target, own.quantize(graph), stored, found_by))
    return found


def skeleton(
    submodule: Submodule,
    target: str,
    dtype: torch.dtype,
    stages: Stages,
    plan: Quantize = KEEP,
    stored: ir.DataType | None = None,
) -> Skeleton:
    """One graph from its submodule to its finished skeleton.

    Args:
        plan: how its products or its table are quantized.
        stored: dtype in which weights lie on disk, if not the one that is computed with.
    """
    return packed(draw(submodule, target, dtype, stages), target, plan, stored)


def draw(submodule: Submodule, target: str, dtype: torch.dtype, stages: Stages) -> Skeleton:
    """The first half of a skeleton: the graph, computing in `dtype`, however its weights will be stored."""
    model = stages.done("traced", trace(submodule, dtype))
    model = stages.done("simplified", simplify(model))
    model = stages.done("optimized", optimize(model, target, partial(stages.step, "optimized")))
    return Skeleton(submodule.graph, model, stages)


def packed(
    one: Skeleton,
    target: str,
    plan: Quantize,
    stored: ir.DataType | None,
    calibration: DecoderCalibration | None = None,
) -> Skeleton:
    """The second half: how the weights are stored. The model is changed in place.

    Args:
        calibration: what finds the integers, if not the packing itself.
    """
    model, stages = one.model, one.stages
    if plan.method != "none":
        model = quantize(model, plan, target)
        model = stages.done("quantized", model if calibration is None else use_results(model, calibration.results))
    model = use_gemm(model)
    if stored is not None:
        model = store_as(model, stored)
    return replace(one, model=stages.done("stored", model))


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
    yield from promised_graphs(recipe.to_json_dict(), facts.patch_size).items()


def shared_graphs(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, str]]:
    """The graphs that are another precision's file: precision and name."""
    for precision in recipe.every_precision:
        for graph, _ in graphs_of(recipe, facts):
            if recipe.written_for(precision, graph) != precision:
                yield precision, graph


def data_stem(graph: str) -> str:
    """Which weight file a graph reads: all encoders share one, so do both embedding heads."""
    if graph.startswith(contract.VISION_ENCODER):
        return contract.VISION_ENCODER
    return contract.EMBED_TOKENS if graph == contract.EMBEDDINGS else graph


def lends_table(recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether the decoder's output head is the token table of a graph beside it, whose files it may read. A runtime
    that looks for data under the graph's own name finds them there by a link, if the recipe wants one."""
    table = contract.EMBED_TOKENS in recipe.graphs or contract.EMBEDDINGS in recipe.graphs
    found = recipe.packaging.tied_head == "link" or not storage(recipe.packaging.runtimes).own_data
    return table and bool(checkpoint.config.tie_word_embeddings) and found


def table_stem(recipe: Recipe, precision: str, checkpoint: Checkpoint) -> str | None:
    """The stem of the files that hold the token table of a precision, where its output head may read them."""
    if not lends_table(recipe, checkpoint):
        return None
    return suffixed(contract.EMBED_TOKENS, recipe.written_for(precision, contract.EMBED_TOKENS))


def lenders_first(found: Sequence[Skeleton]) -> list[Skeleton]:
    """Skeletons in the order in which their weights are placed: the token table before the head that may read it."""
    return sorted(found, key=lambda one: data_stem(one.graph.name) != contract.EMBED_TOKENS)


def keep_under(
    directory: Path, name: str, graph: Graph, checkpoint: Checkpoint, recipe: Recipe
) -> Callable[[str, ir.Model], None]:
    """A function that stores a copy of a stage's skeleton, made runnable, as `<directory>/<stage>/<name>.onnx`."""

    def keep(stage: str, model: ir.Model) -> None:
        folder = directory / stage
        folder.mkdir(parents=True, exist_ok=True)
        with WeightFile.create(folder, name) as data:
            runnable = lower(recipe.target)(model.clone())
            ir.save(attach(runnable, graph, checkpoint, data), folder / f"{name}.onnx")

    return keep
