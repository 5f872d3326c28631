"""`method: source`: which weights a checkpoint holds as integers, and whether the operators can take them as they are.

Decided on the headers, before anything is traced. Integers and zero points stay as they are; a scale is repeated where
its group of columns is larger than a block, and stored in the graph's dtype if that holds it exactly. What cannot be
carried over is refused by name. Knows recipes and what the files hold; nothing about graphs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch

from ...contract import DECODER, EMBEDDINGS, VISION_ENCODER
from ...errors import CheckpointError, RecipeError
from ...promise import TABLES, has_expert_operator
from ...recipe.model import Recipe
from ...recipe.quantize import BlockSettings, FromSource, Int4, Int8
from ..checkpoint import Checkpoint
from ..checkpoint.formats.integers import IntegerMatrix, integer_matrices, is_quantized
from ..checkpoint.names import HEAD, TABLE, parameter_name
from ..weights.source_rows import SourceRows
from .experts import ROUTER

BLOCK_SIZES: tuple[Literal[128, 64, 32, 16], ...] = (
    128,
    64,
    32,
    16,
)  # the largest is taken that has one scale in every block
EXPERTS = ".mlp.experts."
STACKS = 2  # of experts' matrices: gate and up, and down

Names = Mapping[str, str]  # parameter -> the checkpoint's tensor
Log = Callable[[str], None]


@dataclass(frozen=True)
class SourceWeights:
    """The weights that one precision of a recipe carries over, by parameter.

    Attributes:
        settings: how the checkpoint stores each, in a recipe's words.
        rows: their integers.
    """

    settings: Mapping[str, BlockSettings]
    rows: Mapping[str, SourceRows]


NOTHING_CARRIED = SourceWeights({}, {})


def find_source_weights(recipe: Recipe, checkpoint: Checkpoint, log: Log) -> SourceWeights:
    """The weights that a recipe carries over. Logs what becomes of the quantized weights of each graph.

    Args:
        recipe: one precision of it.

    Raises:
        CheckpointError: a weight that cannot be carried over.
        RecipeError: a graph that carries weights over and has none that is quantized.
    """
    settings: dict[str, BlockSettings] = {}
    rows: dict[str, SourceRows] = {}
    for graph, names in _quantized_weights(recipe, checkpoint).items():
        method = recipe.quantization_of(graph)
        if not isinstance(method, FromSource):
            if names:
                log(_describe_restored(graph, names, recipe, checkpoint))
            continue
        carried = {name: tensor for name, tensor in names.items() if not _matches(name, method.keep)}
        if not carried:
            raise RecipeError(
                f"{recipe.name}: {graph}: method: source, and {checkpoint.source} has no integers to carry over",
                "Choose another precision, such as int4, or another method",
            )
        for operands in _by_operator(carried, recipe):
            stored = _stored_settings(operands, recipe, checkpoint)
            if isinstance(stored, str):
                raise _refusal(next(iter(operands)), stored, recipe, checkpoint)
            settings |= dict.fromkeys(operands, stored.model_copy(update={"accuracy_level": method.accuracy_level}))
        for name, tensor in carried.items():
            rows[name] = SourceRows(tensor, integer_matrices(checkpoint.tensors[tensor]) or ())
        log(f"{graph}: {len(carried)} weights keep the checkpoint's integers, zero points and scales")
    if rows and (count := _count_rounded(recipe, checkpoint)):
        log(
            f"warning: dtype: {recipe.dtype} rounds tensors that {checkpoint.source} stores in another dtype "
            f"({count}); dtype: float32 holds them all"
        )
    return SourceWeights(settings, rows)


def _quantized_weights(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """The quantized weights of every graph that is built, but routers, which no method stores as integers."""
    graphs = dict.fromkeys(EMBEDDINGS if graph in TABLES else graph for graph in recipe.graphs)
    weights: dict[str, dict[str, str]] = {graph: {} for graph in graphs}
    names = {name: tensor for tensor in checkpoint.tensors if (name := parameter_name(tensor)) is not None}
    if checkpoint.tied:
        names[HEAD] = TABLE
    for name, tensor in names.items():
        graph = _graph_of(name)
        is_stored_so = not fnmatchcase(name, ROUTER) and is_quantized(checkpoint.tensors[tensor])
        if graph in weights and is_stored_so:
            weights[graph][name] = tensor
    return weights


def _count_rounded(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """How many tensors that are not quantized have a dtype whose numbers the recipe's does not hold."""
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    floats = (
        reader for name, reader in checkpoint.tensors.items() if parameter_name(name) and not is_quantized(reader)
    )
    return sum(torch.promote_types(reader.dtype, dtype) != dtype for reader in floats)


def _graph_of(parameter: str) -> str:
    if parameter.startswith("visual."):
        return VISION_ENCODER
    return EMBEDDINGS if parameter.startswith("embed_tokens.") else DECODER


def _by_operator(names: Names, recipe: Recipe) -> Iterable[Names]:
    """The weights that one operator reads, whose integers must be alike: `QMoE` reads both stacks of its experts."""
    groups: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in names.items():
        groups[name.rpartition(".")[0] if _is_in_qmoe(name, recipe) else name][name] = tensor
    return groups.values()


def _is_in_qmoe(parameter: str, recipe: Recipe) -> bool:
    """Whether `QMoE` computes with a weight, and not a Loop that dequantizes one expert after another."""
    return EXPERTS in parameter and has_expert_operator(recipe.to_json_dict())


def _stored_settings(names: Names, recipe: Recipe, checkpoint: Checkpoint) -> BlockSettings | str:
    """How the checkpoint stores the weights of one operator; or why no operator takes them so."""
    is_experts = any(EXPERTS in name for name in names)
    is_qmoe = any(_is_in_qmoe(name, recipe) for name in names)
    matrices: list[IntegerMatrix] = []
    for tensor in names.values():
        integers = integer_matrices(checkpoint.tensors[tensor])
        if integers is None:
            return "it is not stored as integers of 4 or 8 bits"
        matrices += integers
    bits = {matrix.bits for matrix in matrices}
    if is_qmoe and len(names) < STACKS:
        return "the other matrices of its experts are not carried over, and one operator reads both"
    if len(bits) > 1:
        return "one operator reads it with other matrices, and not all have as many bits"
    if is_qmoe and bits == {8}:
        return "onnxruntime's operator for 8-bit experts rounds activations as well"
    if not all(matrix.has_small_zero_points() for matrix in matrices):
        return f"a zero point is no integer of {bits.pop()} bits"
    if not all(matrix.has_scales_in(getattr(torch, recipe.compute_dtype)) for matrix in matrices):
        return f"a scale is not exact in {recipe.compute_dtype}, in dtype: float32 and bfloat16 it is"
    widths = [matrix.reader.shape[1] for matrix in matrices if is_experts]  # whose operators take whole blocks only
    sizes = [size for size in BLOCK_SIZES if not any(width % size for width in widths)]
    block_size = next((size for size in sizes if all(matrix.has_blocks(size) for matrix in matrices)), None)
    if block_size is None:
        order = ", since they are in activation order (desc_act)" if any(m.is_reordered for m in matrices) else ""
        return f"{BLOCK_SIZES[-1]} neighbouring columns, the smallest block, do not always share a scale{order}"
    is_symmetric = all(matrix.is_symmetric for matrix in matrices)
    if bits == {4}:
        return Int4(method="int4", block_size=block_size, symmetric=is_symmetric)
    return Int8(method="int8", block_size=block_size, symmetric=is_symmetric)


def _refusal(parameter: str, reason: str, recipe: Recipe, checkpoint: Checkpoint) -> CheckpointError:
    """The error for a weight that cannot be carried over."""
    last = ".".join(parameter.split(".")[-2:])
    pattern = f"*{EXPERTS}*" if EXPERTS in parameter else parameter if last == parameter else f"*.{last}"
    return CheckpointError(
        f"{checkpoint.root}: {parameter} cannot be carried over by method: source: {reason}",
        f'Restore such weights, keep: ["{pattern}"], or quantize all anew, method: int4 or int8',
    )


def _describe_restored(graph: str, names: Names, recipe: Recipe, checkpoint: Checkpoint) -> str:
    """What becomes of quantized weights that are not carried over, and whether they could be."""
    method = recipe.quantization_of(graph).method
    assert checkpoint.quantization is not None
    form = checkpoint.quantization.method
    line = f"{graph}: {len(names)} weights quantized by {form} are restored"
    if method == "none":
        line += f" in {recipe.dtype}, activations are not quantized"
    else:
        line = f"warning: {line} and rounded again by method: {method}"
    operators = _by_operator(names, recipe)
    if recipe.target == "ort" and not any(
        isinstance(_stored_settings(operands, recipe, checkpoint), str) for operands in operators
    ):
        line += "; method: source (--precision source) keeps their integers"
    return line


def _matches(parameter: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(parameter, pattern) for pattern in patterns)
