"""What a recipe promises: the graphs of an artifact in each precision, and the checks in its evidence.

Recipes are plain data, as in manifests, so that a build, the reader of manifests, the parity harness and `publish`
derive the same graphs and checks. Knows recipes; nothing about files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from . import contract
from .contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER

Json = Mapping[str, Any]
Grid = tuple[int, int]  # height and width in patches

TABLES = (EMBEDDINGS, EMBED_TOKENS)  # both hold the token table
GRAPHS = (VISION_ENCODER, *TABLES, DECODER)
ALL = ((VISION_ENCODER,), (EMBEDDINGS,), (DECODER,))
# The stages of a verification and the graphs each runs: of every group the promised ones, at least one.
RUNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sampling": (),
    "prompt": (),
    "preprocess": (),
    "positions": (),
    "vision": ((VISION_ENCODER,),),
    "embeddings": (TABLES,),
    "decoder": ((DECODER,),),
    "prefill": ALL,
    "teacher_forced": ALL,
    "chunked": ALL,
    "decode": ((EMBEDDINGS,), (DECODER,)),
    "generate": ALL,
    "exam": ALL,
    "accuracy": ALL,
}
WEIGHTS = "weights"
CALIBRATED = "calibrated_weights"  # calibration chose the rounding
FROM_SOURCE = "source_weights"  # nothing was rounded
DEQUANTIZED = "dequantized_"  # prefix of stages in which PyTorch has the artifact's dequantized weights
DEQUANTIZED_STAGES = ("vision", "embeddings", "decoder", "decode", "generate")
BLOCK_METHODS = (
    "int8",
    "int4",
    "source",
)  # methods whose weights dequantize to the same values whatever the activations


def promised_graphs(recipe: Json, patch_size: int) -> dict[str, Grid | None]:
    """The graphs of a recipe by name, each with the grid that a vision encoder is bound to; None accepts any.

    Args:
        recipe: in any of its precisions; all have the same graphs.
        patch_size: side of a patch, in pixels.
    """
    vision = recipe["vision"]
    grids = [(height // patch_size, width // patch_size) for height, width in vision["sizes"]]
    graphs: dict[str, Grid | None] = {}
    for name in recipe["graphs"]:
        if name != VISION_ENCODER or vision["grid"] == "dynamic":
            graphs[name] = None
        elif vision["grid"] == "fixed":
            graphs |= dict(zip([name], grids, strict=False))
        else:
            graphs |= {contract.bucket_name(*grid): grid for grid in grids}
    return graphs


def recipe_at(recipe: Json, precision: str) -> Json:
    """The recipe of one of its precisions alone, as `Recipe.at` returns it."""
    values = recipe["precisions"][precision]
    parity = {**recipe["parity"], "tolerances": values["tolerances"]}
    changed = {"dtype": values["dtype"], "quantization": values["quantization"], "parity": parity, "precisions": {}}
    return {**recipe, **changed}


def broken_promises(manifest: Json) -> Iterator[str]:
    """Describe how a manifest, as JSON values, differs from what its recipe promises; yields nothing if it does not.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: the values are not a manifest.
    """
    recipe, files = manifest["recipe"], manifest["files"]
    promised = promised_graphs(recipe, manifest["facts"]["patch_size"])
    if not recipe["graphs"]:
        yield "its recipe names no graph"
    for name in recipe["graphs"]:
        if name not in GRAPHS:
            yield f"its recipe names a graph {name}, which does not exist"
        if name not in map(graph_kind, promised):
            yield f"its recipe names no picture size for {name}"
    encoders = {encoder["graph"]: encoder["grid"] and tuple(encoder["grid"]) for encoder in manifest["encoders"]}
    if encoders != {name: grid for name, grid in promised.items() if graph_kind(name) == VISION_ENCODER}:
        yield "its encoders are not those its recipe promises"
    precisions, planned = manifest.get("precisions", {}), recipe.get("precisions", {})
    yield from describe_differences("precision", precisions, planned, "")
    for precision, entries in {"": manifest, **precisions}.items():
        suffix = f" in precision {precision}" if precision else ""
        if precision and entries["recipe"] != recipe_at(recipe, precision):
            yield f"its recipe{suffix} is not what its recipe says of it"
        yield from describe_differences("graph", entries["graphs"], promised, suffix)
        for name, entry in entries["graphs"].items():
            names = [entry["file"], *entry["data"], *(shared["file"] for shared in entry.get("shared", ()))]
            for file in names:
                if file not in files:
                    yield f"graph {name}{suffix} is made of {file}, which its files do not list"


def describe_differences(kind: str, listed: Collection[str], promised: Collection[str], suffix: str) -> Iterator[str]:
    """Describe what is promised and not listed, and what is listed and not promised."""
    yield from (f"lists no {kind} {name}{suffix}, which its recipe promises" for name in promised if name not in listed)
    yield from (
        f"lists a {kind} {name}{suffix}, which its recipe does not name" for name in listed if name not in promised
    )


def graph_kind(graph: str) -> str:
    """The name of a graph in recipes: every encoder is `vision_encoder`."""
    return VISION_ENCODER if graph.startswith(VISION_ENCODER) else graph


def graphs_run(stage: str) -> frozenset[str]:
    """The graphs that a stage may run, by their names in recipes."""
    return frozenset(chain(*RUNS.get(stage.removeprefix(DEQUANTIZED), ())))


def missing_graphs(stage: str, graphs: Collection[str]) -> list[str]:
    """The graphs that a stage needs and that are not among `graphs`, by their names in recipes."""
    groups = RUNS.get(stage.removeprefix(DEQUANTIZED), ())
    return sorted(group[0] for group in groups if not set(group) & set(graphs))


def quantized_graphs(recipe: Json, graphs: Collection[str]) -> list[tuple[str, str]]:
    """The stages that compare quantized weights, each with the graph that has them."""
    pairs = []
    for name, plan in (recipe.get("quantization") or {}).items():
        holders = TABLES if name == EMBEDDINGS else (name,)
        graph = next((graph for graph in holders if graph in graphs), None)
        if graph is not None and plan["method"] != "none":
            pairs.append((_weights_stage(plan), graph))
    return pairs


def _weights_stage(plan: Json) -> str:
    if plan["method"] == "source":
        return FROM_SOURCE
    return CALIBRATED if plan.get("algorithm") == "gptq" else WEIGHTS


def reason_to_skip(recipe: Json, model_type: str = "") -> str | None:
    """Why an artifact is not compared with its dequantized weights; None if it is, "" if it has none."""
    plans = (recipe.get("quantization") or {}).values()
    quantized = [plan for plan in plans if plan["method"] != "none"]
    rounded = "rounds activations as well: no weights compute the same"
    if not quantized:
        return ""
    if any(plan["method"] not in BLOCK_METHODS for plan in quantized):
        return f"int8_dynamic {rounded}"
    if any(plan["accuracy_level"] == 4 for plan in quantized):
        return f"accuracy_level 4 {rounded}"
    one_operator = model_type == "qwen3_vl_moe" and recipe["target"] == "ort" and recipe["dtype"] != "float16"
    if one_operator and recipe["quantization"][DECODER]["method"] == "int8":
        return f"onnxruntime's kernel for 8-bit experts {rounded}"
    return None


def grid_case(grid: Grid) -> str:
    """The name of the case that runs the encoder bound to a grid."""
    return f"grid-{grid[0]}x{grid[1]}"


def missing_checks(
    recipe: Json, graphs: Mapping[str, Grid | None], model_type: str, checks: Collection[tuple[str, str]]
) -> Iterator[str]:
    """Yield what a recipe promises and none of the checks compares: `vision`, `weights[decoder_model_merged]`.

    Args:
        graphs: as `promised_graphs` returns them.
        checks: stage and name of each.
    """
    stages = {stage for stage, _ in checks}
    kinds = set(map(graph_kind, graphs))
    dequantized = [f"{DEQUANTIZED}{stage}" for stage in DEQUANTIZED_STAGES]
    if reason_to_skip(recipe, model_type) is not None:
        dequantized = []
    optional = {"accuracy", *(() if recipe["parity"].get("held_out") else {"exam"})}  # accuracy sums up the exam
    required = [stage for stage in (*RUNS, *dequantized) if stage not in optional and not missing_graphs(stage, kinds)]
    yield from (stage for stage in required if stage not in stages)
    bound = [("vision", grid_case(grid)) for grid in graphs.values() if grid is not None]
    for stage, name in (*bound, *quantized_graphs(recipe, kinds)):
        if (stage, name) not in checks:
            yield f"{stage}[{name}]"
