"""Skeletons: every graph of a recipe, finished but for its weights, from the headers of a checkpoint.

recipe, checkpoint -> trace -> simplify -> optimize -> quantize

A skeleton's weights are inputs that say where their values will come from (`weights/inputs.py`), so that everything a
build writes is known before it reads a weight. Knows nothing about files, except to keep stages on request.
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
from ..contract import TEXT, Facts, Graph
from ..errors import RecipeError
from ..packaging import storage_rules
from ..promise import EXPERTS_AS_OPERATOR, cache_dtype, promised_graphs, suffixed
from ..recipe.model import DEFAULT, Recipe
from ..recipe.quantize import KeepPrecision, MethodSettings
from .calibration import DecoderCalibration
from .calibration.results import CalibratedRows
from .checkpoint import Checkpoint, open_checkpoint, open_repository
from .checkpoint.adapter import open_adapter
from .lowering import lower
from .lowering.experts import (
    OLDEST_ONNXRUNTIME,
    OLDEST_WITH_ACCURACY_LEVEL,
    OLDEST_WITH_RAW_WEIGHTS,
    use_operator,
)
from .optimize import optimize
from .quantize import quantize, storage_of, store_as
from .quantize.cache import quantize_cache
from .quantize.source import NOTHING_CARRIED, SourceWeights, find_source_weights
from .rewrites.products import fuse_products
from .rewrites.rows import use_gemm
from .simplify import simplify
from .smoothing import TowerSmoothing
from .stages import Stages
from .submodules import Submodule, build_submodule, check_tensors
from .trace import trace
from .weights import WeightFile, attach
from .weights.inputs import use_factors
from .weights.quantized_rows import use_rows

Log = Callable[[str], None]
UNQUANTIZED = KeepPrecision()
GROUP_QUERY_HEAD_MULTIPLE = 8  # of the head sizes that com.microsoft.GroupQueryAttention takes


def open_recipe_checkpoint(recipe: Recipe, checkpoint: str | None, adapters: Sequence[str] = ()) -> Checkpoint:
    """Open the checkpoint and the adapters that the user named, else the recipe's."""
    recorded = recipe.to_json_dict()["checkpoint"]
    named = adapters or recipe.adapters
    names = [""] * len(named) if adapters else recorded["adapters"]
    chosen = [open_adapter(adapter, name) for adapter, name in zip(named, names, strict=True)]
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint)
    elif recipe.checkpoint_dir is not None:
        opened = open_checkpoint(str(recipe.checkpoint_dir), name=recorded["source"])
    else:
        opened = open_repository(recipe.checkpoint.source, recipe.checkpoint.revision)
    return replace(opened.adapted(chosen), chosen_head=recipe.head)


def recipe_for(recipe: Recipe, checkpoint: Checkpoint, log: Log) -> Recipe:
    """The recipe with the checkpoint's head, if it names none itself; what follows from that is logged.

    Raises:
        RecipeError: it asks for what a model of this head cannot do.
    """
    head = checkpoint.facts.head
    if recipe.head is not None:
        return recipe
    if recipe.parity.held_out and head != TEXT:
        raise RecipeError(f"{recipe.name}: the exam asks questions, and the head is {head}", "Set held_out: false")
    if head != TEXT and any(recipe.at(name).quantization.cache.method != "none" for name in recipe.every_precision):
        raise RecipeError(
            f"{recipe.name}: the head is {head}, which reads every prompt at once", "Remove quantization.cache"
        )
    resolved = recipe.with_head(head)
    left_out = [name for name in recipe.packaging.runtimes if name not in resolved.packaging.runtimes]
    if head != TEXT:
        log(f"head {head}, as the checkpoint says" + (f"; not packaged for {', '.join(left_out)}" if left_out else ""))
    return resolved


def inputs_of(recipe: Recipe, checkpoint: str | None, adapters: Sequence[str] = ()) -> tuple[Path, ...]:
    """Files and directories that a build reads, among them the checkpoint and the adapters that the user named."""
    named = [*([] if checkpoint is None else [checkpoint]), *adapters]
    return (*recipe.inputs, *(Path(path).expanduser() for path in named))


@dataclass
class Skeleton:
    """One graph without its weights.

    Attributes:
        graph: its contract.
        stages: the build stages it went through.
        lender: stem of the token table's files, if its output head may read them.
        calibration: how its integers were found, if not by the packing itself.
        smoothing: what its weights are multiplied with before they are quantized, if anything.
    """

    graph: Graph
    model: ir.Model
    stages: Stages
    precision: str = DEFAULT
    lender: str | None = None
    calibration: DecoderCalibration | None = None
    smoothing: TowerSmoothing | None = None

    @property
    def name(self) -> str:
        """The stem of its file: `decoder_model_merged`, `decoder_model_merged_q4`."""
        return suffixed(self.graph.name, self.precision)

    @property
    def data_stem(self) -> str:
        """The stem of the weight files it shares with others of its kind and precision."""
        return suffixed(data_stem(self.graph.name), self.precision)


def build_skeletons(
    recipe: Recipe,
    checkpoint: Checkpoint,
    log: Log,
    stages_dir: Path | None = None,
    calibrations: Mapping[str, DecoderCalibration] = MappingProxyType({}),
    smoothings: Mapping[str, TowerSmoothing] = MappingProxyType({}),
) -> list[Skeleton]:
    """Every graph of a recipe in every precision, equal ones once, from the checkpoint's headers alone.

    Args:
        stages_dir: where to keep every stage of every graph, runnable; None keeps none.
        calibrations: of the decoder, by precision; each runs when its graph is quantized.
        smoothings: of the tower, likewise.

    Raises:
        CheckpointError: a tensor is missing or has another shape, or integers cannot be carried over.
        RecipeError: onnxruntime cannot run the graphs, or there are no integers to carry over.
    """
    for line in checkpoint.warnings:
        log(f"warning: {line}")
    check_tensors(checkpoint, torch.float32, needs_tower(recipe), log)
    variants = {precision: recipe.at(precision) for precision in recipe.every_precision}
    source_weights = {name: find_source_weights(variant, checkpoint, log) for name, variant in variants.items()}
    skeletons = []
    # Precisions of one dtype and one form of experts differ from quantization on.
    optimized: dict[tuple[str, torch.dtype, str], Skeleton] = {}
    for precision, variant in variants.items():
        dtype: torch.dtype = getattr(torch, variant.compute_dtype)
        storage_dtype = ir.DataType.BFLOAT16 if variant.dtype == "bfloat16" else None
        check_onnxruntime(variant, checkpoint.facts)
        check_head_size(variant, checkpoint.facts)
        for graph, grid in graphs_of(variant, checkpoint.facts):
            if recipe.file_precision(precision, graph) != precision:
                continue
            submodule = build_submodule(checkpoint, graph, variant.target, dtype, grid)
            name = suffixed(graph, precision)
            keep = None
            if stages_dir is not None:
                keep = stage_keeper(stages_dir, name, submodule.graph, checkpoint, variant)
            if (key := (graph, dtype, variant.experts)) not in optimized:
                stages = Stages(name, log, keep)
                optimized[key] = trace_and_optimize(submodule, variant.target, dtype, stages, variant.experts)
            skeleton = optimized[key]
            skeleton = replace(
                skeleton,
                model=skeleton.model.clone(),
                stages=Stages(name, log, keep, list(skeleton.stages.records)),
                precision=precision,
            )
            if graph == contract.DECODER:
                skeleton.graph = contract.decoder(checkpoint.facts, cache_dtype(variant.to_json_dict()))
                skeleton.lender = table_stem(recipe, precision, checkpoint)
                skeleton.calibration = calibrations.get(precision)
            elif data_stem(graph) == contract.VISION_ENCODER:
                skeleton.smoothing = smoothings.get(precision)
            quantization = variant.quantization_of(graph)
            skeleton = quantize_and_store(
                skeleton, variant.target, quantization, storage_dtype, source_weights[precision]
            )
            skeletons.append(skeleton)
    return skeletons


def build_skeleton(
    submodule: Submodule,
    target: str,
    dtype: torch.dtype,
    stages: Stages,
    quantization: MethodSettings = UNQUANTIZED,
    storage_dtype: ir.DataType | None = None,
) -> Skeleton:
    """One graph from its submodule to its finished skeleton.

    Args:
        quantization: how its products or its table are quantized.
        storage_dtype: dtype of weights on disk, if not the one that is computed with.
    """
    return quantize_and_store(trace_and_optimize(submodule, target, dtype, stages), target, quantization, storage_dtype)


def trace_and_optimize(
    submodule: Submodule, target: str, dtype: torch.dtype, stages: Stages, experts: str = "auto"
) -> Skeleton:
    """The first half of a skeleton: the graph, computing in `dtype`, however its weights will be stored."""
    model = stages.record("traced", trace(submodule, dtype))
    model = stages.record("simplified", simplify(model))
    if experts == EXPERTS_AS_OPERATOR:
        model = use_operator(model)
    model = stages.record("optimized", optimize(model, target, partial(stages.keep_step, "optimized")))
    return Skeleton(submodule.graph, model, stages)


def quantize_and_store(
    skeleton: Skeleton,
    target: str,
    quantization: MethodSettings,
    storage_dtype: ir.DataType | None,
    source_weights: SourceWeights = NOTHING_CARRIED,
) -> Skeleton:
    """The second half: how the weights are stored. The model is changed in place."""
    model, stages, calibration = skeleton.model, skeleton.stages, skeleton.calibration
    if target == "ort":
        model = fuse_products(model, partial(storage_of, settings=quantization, source_weights=source_weights))
    if quantization.method != "none":
        model = quantize(model, quantization, target, source_weights)
        if calibration is not None and calibration.settings is not None:
            model = use_rows(model, partial(CalibratedRows, calibration.results))
        if skeleton.smoothing is not None:
            model = use_factors(model, skeleton.smoothing.factors)
        model = stages.record("quantized", model)
    model = use_gemm(model)
    if calibration is not None and calibration.cache is not None:
        model = quantize_cache(model, calibration.cache_scales)
    if storage_dtype is not None:
        model = store_as(model, storage_dtype)
    return replace(skeleton, model=stages.record("stored", model))


def check_onnxruntime(recipe: Recipe, facts: Facts) -> None:
    """Compare the onnxruntime a recipe promises to run on with the one its graphs need.

    Raises:
        RecipeError: `min_onnxruntime` names a version that cannot compute experts.
    """
    if facts.model_type != "qwen3_vl_moe" or recipe.target != "ort":
        return
    quantization = recipe.quantization_of(contract.DECODER)
    needed, why = OLDEST_ONNXRUNTIME, ""
    if recipe.experts == EXPERTS_AS_OPERATOR and recipe.dtype == "float16" and quantization.method != "none":
        needed, why = OLDEST_WITH_RAW_WEIGHTS, " with quantized experts in float16"
    if getattr(quantization, "accuracy_level", 0):
        needed, why = OLDEST_WITH_ACCURACY_LEVEL, " with this accuracy_level"
    if tuple(map(int, recipe.min_onnxruntime.split("."))) < tuple(map(int, needed.split("."))):
        raise RecipeError(
            f"{recipe.name}: min_onnxruntime is {recipe.min_onnxruntime}, a mixture of experts on the ort target needs "
            f"onnxruntime {needed}{why}",
            f'Write min_onnxruntime: "{needed}"',
        )


def check_head_size(recipe: Recipe, facts: Facts) -> None:
    """Compare the decoder's heads with those that onnxruntime's attention takes.

    Raises:
        RecipeError: the recipe's target cannot compute them.
    """
    if recipe.target == "ort" and contract.DECODER in recipe.graphs and facts.head_dim % GROUP_QUERY_HEAD_MULTIPLE:
        raise RecipeError(
            f"{recipe.name}: the decoder's heads have size {facts.head_dim}, onnxruntime's GroupQueryAttention takes "
            f"multiples of {GROUP_QUERY_HEAD_MULTIPLE}",
            "Write target: portable",
        )


def graphs_of(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The graphs a recipe asks for: name, and the bound grid of a fixed encoder in patches."""
    yield from promised_graphs(recipe.to_json_dict(), facts.patch_size).items()


def needs_tower(recipe: Recipe) -> bool:
    """Whether a build reads the vision tower: for its encoder, or for pictures among calibration prompts."""
    calibrated = any(recipe.at(precision).is_calibrated for precision in recipe.every_precision)
    return contract.VISION_ENCODER in recipe.graphs or calibrated


def shared_graphs(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, str]]:
    """The graphs that are another precision's file: precision and name."""
    for precision in recipe.every_precision:
        for graph, _ in graphs_of(recipe, facts):
            if recipe.file_precision(precision, graph) != precision:
                yield precision, graph


def data_stem(graph: str) -> str:
    """Which weight file a graph reads: all encoders share one, and so do both embedding graphs."""
    if graph.startswith(contract.VISION_ENCODER):
        return contract.VISION_ENCODER
    return contract.EMBED_TOKENS if graph == contract.EMBEDDINGS else graph


def shares_table(recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether the decoder's output head is the token table of another graph, whose files it may read. A runtime that
    looks for data under the graph's own name finds them by a link, if the recipe allows one."""
    has_table = contract.EMBED_TOKENS in recipe.graphs or contract.EMBEDDINGS in recipe.graphs
    rules = storage_rules(recipe.packaging.runtimes)
    is_readable = recipe.packaging.tied_head == "link" or not rules.named_by_graph
    return checkpoint.facts.head == TEXT and has_table and checkpoint.tied and is_readable


def table_stem(recipe: Recipe, precision: str, checkpoint: Checkpoint) -> str | None:
    """The stem of the files that hold the token table of a precision, where its output head may read them."""
    if not shares_table(recipe, checkpoint):
        return None
    return suffixed(contract.EMBED_TOKENS, recipe.file_precision(precision, contract.EMBED_TOKENS))


def sort_for_writing(skeletons: Sequence[Skeleton]) -> list[Skeleton]:
    """Skeletons in the order in which their weights are placed: the token table before the head that may read it."""
    return sorted(skeletons, key=lambda skeleton: data_stem(skeleton.graph.name) != contract.EMBED_TOKENS)


def stage_keeper(
    directory: Path, name: str, graph: Graph, checkpoint: Checkpoint, recipe: Recipe
) -> Callable[[str, ir.Model], None]:
    """A function that stores a copy of a stage's skeleton, made runnable, as `<directory>/<stage>/<name>.onnx`."""

    def keep(stage: str, model: ir.Model) -> None:
        folder = directory / stage
        folder.mkdir(parents=True, exist_ok=True)
        with WeightFile.create(folder, name) as file:
            runnable = lower(recipe.target)(model.clone())
            ir.save(attach(runnable, graph, checkpoint, file), folder / f"{name}.onnx")

    return keep
