"""The symbolic signature of every graph of every shipped recipe: the contract's, and no dim specialised."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from qwen3vl_export import contract
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import Graph, Tensor
from qwen3vl_export.exporter.checkpoint import Checkpoint
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.quantize import quantize, store_as
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.skeletons import graphs_of
from qwen3vl_export.exporter.weights.inputs import weight_inputs
from qwen3vl_export.recipe import list_recipes, load_recipe
from qwen3vl_export.recipe.model import Recipe

from ...fixtures.official import config
from ...fixtures.traces import build_submodule, trace

DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int64": ir.DataType.INT64}
Signature = list[tuple[str, ir.DataType, tuple[int | str, ...]]]
RECIPES = {name: load_recipe(path) for name, path in list_recipes().items()}
LOCAL = [name for name, recipe in RECIPES.items() if recipe.checkpoint.is_local]
PUBLISHED = [name for name in RECIPES if name not in LOCAL and "instruct" in name]  # thinking ones have the same shapes


def declared(tensors: tuple[Tensor, ...], dtype: str) -> Signature:
    return [(t.name, DTYPES[dtype if t.dtype == "float" else t.dtype], t.shape) for t in tensors]


def signature(values: list[ir.Value]) -> Signature:
    plain = {True: int, False: str}
    return [
        (str(v.name), v.dtype or ir.DataType.UNDEFINED, tuple(plain[isinstance(d, int)](d) for d in v.shape or ()))
        for v in values
    ]


def graphs(recipe: Recipe, facts: contract.Facts) -> list[Graph]:
    make = {contract.EMBED_TOKENS: contract.embed_tokens, contract.EMBEDDINGS: contract.embeddings}
    make[contract.DECODER] = contract.decoder
    return [
        make[name](facts) if name in make else contract.vision_encoder(facts, name, grid)
        for name, grid in graphs_of(recipe, facts)
    ]


@pytest.mark.parametrize("name", LOCAL)
def test_the_graphs_of_a_built_artifact(name: str, built: Callable[[str], Path]) -> None:
    artifact = open_artifact(built(name))
    recipe = RECIPES[name]
    expected = graphs(recipe, artifact.manifest.facts)
    assert {graph.name for graph in expected} == set(artifact.manifest.graphs)
    for graph in expected:
        proto = onnx.load(artifact.graph_path(graph.name), load_external_data=False)
        model = ir.from_proto(proto)
        assert signature(list(model.graph.inputs)) == declared(graph.inputs, recipe.compute_dtype)
        assert signature(list(model.graph.outputs)) == declared(graph.outputs, recipe.compute_dtype)
        constants = {tensor.name for tensor in proto.graph.initializer}
        inner = {value.name for value in proto.graph.value_info} - constants
        assert not inner, "dims inside the graph would keep the tracer's names"


@cache
def skeleton(size: str, target: str, dtype: torch.dtype, name: str, grid: tuple[int, int] | None) -> ir.Model:
    """A graph of a published size, narrowed in nothing but its number of layers."""
    checkpoint = Checkpoint(Path("nowhere"), "random", "local", config(size, layers=2, depth=4))
    return optimize(simplify(trace(build_submodule(checkpoint, name, target, dtype, grid), dtype)), target)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_graphs_of_a_published_size(name: str) -> None:
    recipe = RECIPES[name]
    size = name.removeprefix("qwen3-vl-").removesuffix("-instruct")
    facts = Checkpoint(Path("nowhere"), "random", "local", config(size, layers=2, depth=4)).facts
    for graph, (stem, grid) in zip(graphs(recipe, facts), graphs_of(recipe, facts), strict=True):
        model = skeleton(size, recipe.target, getattr(torch, recipe.compute_dtype), stem, grid).clone()
        model = quantize(model, recipe.quantization_of(stem), recipe.target)
        if recipe.dtype == "bfloat16":
            model = store_as(model, ir.DataType.BFLOAT16)
        inputs = [value for value in model.graph.inputs if value not in weight_inputs(model)]
        assert signature(inputs) == declared(graph.inputs, recipe.compute_dtype)
        assert signature(list(model.graph.outputs)) == declared(graph.outputs, recipe.compute_dtype)
