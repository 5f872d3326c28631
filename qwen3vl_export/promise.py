"""What a recipe promises: the graphs an artifact holds in each precision, and the checks that evidence of it has.

Recipes are plain data here, as manifests hold them, so that a build, the reader of manifests, the parity harness and
`publish` derive what must be there from the same words. Knows nothing about files and runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from . import contract
from .contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER

Json = Mapping[str, Any]
Grid = tuple[int, int]  # height and width in patches

HEADS = (EMBEDDINGS, EMBED_TOKENS)  # both hold the token table
GRAPHS = (VISION_ENCODER, *HEADS, DECODER)
ALL = ((VISION_ENCODER,), (EMBEDDINGS,), (DECODER,))
# The stages of a verification, and the graphs each runs: of every group those that are promised, which must be one.
RUNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "prompt": (),
    "preprocess": (),
    "positions": (),
    "vision": ((VISION_ENCODER,),),
    "embeddings": (HEADS,),
    "decoder": ((DECODER,),),
    "prefill": ALL,
    "teacher_forced": ALL,
    "chunked": ALL,
    "decode": ((EMBEDDINGS,), (DECODER,)),
    "generate": ALL,
    "exam": ALL,
    "accuracy": ALL,
}
WEIGHTS, CALIBRATED = "weights", "calibrated_weights"  # the second where rounding looked at activations
OWN_WEIGHTS = "dequantized_"  # what stages are called in which PyTorch has the artifact's own weights
OWN_STAGES = ("vision", "embeddings", "decoder", "decode", "generate")
BLOCKS = ("int8", "int4")  # methods whose integers stand for weights, whatever the activations


def promised_graphs(recipe: Json, patch_size: int) -> dict[str, Grid | None]:
    """The graphs of a recipe by name, and the grid that a vision encoder is bound to (None: it takes any).

    Args:
        recipe: in any of its precisions, all of which have the same graphs.
        patch_size: pixels of a patch's side.
    """
    vision = recipe["vision"]
    grids = [(height // patch_size, width // patch_size) for height, width in vision["sizes"]]
    found: dict[str, Grid | None] = {}
    for name in recipe["graphs"]:
        if name != VISION_ENCODER or vision["grid"] == "dynamic":
            found[name] = None
        elif vision["grid"] == "fixed":
            found |= dict(zip([name], grids, strict=False))
        else:
            found |= {contract.bucket_name(*grid): grid for grid in grids}
    return found


def in_precision(recipe: Json, precision: str) -> Json:
    """The recipe of one of its precisions alone, as `Recipe.at` has it."""
    chosen = recipe["precisions"][precision]
    parity = {**recipe["parity"], "tolerances": chosen["tolerances"]}
    changed = {"dtype": chosen["dtype"], "quantization": chosen["quantization"], "parity": parity, "precisions": {}}
    return {**recipe, **changed}


def broken_promises(manifest: Json) -> Iterator[str]:
    """How a manifest, as JSON values, differs from what its recipe promises, in words; nothing if it does not.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it is no manifest.
    """
    recipe, files = manifest["recipe"], manifest["files"]
    promised = promised_graphs(recipe, manifest["facts"]["patch_size"])
    if not recipe["graphs"]:
        yield "its recipe names no graph"
    for name in recipe["graphs"]:
        if name not in GRAPHS:
            yield f"its recipe names a graph {name}, which there is not"
        if name not in map(kind_of, promised):
            yield f"its recipe names no picture size for {name}"
    encoders = {encoder["graph"]: encoder["grid"] and tuple(encoder["grid"]) for encoder in manifest["encoders"]}
    if encoders != {name: grid for name, grid in promised.items() if kind_of(name) == VISION_ENCODER}:
        yield "its encoders are not those its recipe promises"
    precisions, named = manifest.get("precisions", {}), recipe.get("precisions", {})
    yield from differences("precision", precisions, named, "")
    for precision, held in {"": manifest, **precisions}.items():
        of = f" in precision {precision}" if precision else ""
        if precision and held["recipe"] != in_precision(recipe, precision):
            yield f"its recipe{of} is not what its recipe says of it"
        yield from differences("graph", held["graphs"], promised, of)
        for name, entry in held["graphs"].items():
            read = [entry["file"], *entry["data"], *(shared["file"] for shared in entry.get("shared", ()))]
            for file in read:
                if file not in files:
                    yield f"graph {name}{of} is made of {file}, which its files do not list"


def differences(kind: str, held: Collection[str], promised: Collection[str], of: str) -> Iterator[str]:
    """In words, what is promised and not there, and what is there and not promised."""
    yield from (f"lists no {kind} {name}{of}, which its recipe promises" for name in promised if name not in held)
    yield from (f"lists a {kind} {name}{of}, which its recipe does not name" for name in held if name not in promised)


def kind_of(graph: str) -> str:
    """What a graph is called in recipes: every encoder is `vision_encoder`."""
    return VISION_ENCODER if graph.startswith(VISION_ENCODER) else graph


def graphs_run(stage: str) -> frozenset[str]:
    """The graphs that a stage runs where there are, every encoder under the one name."""
    return frozenset(chain(*RUNS.get(stage.removeprefix(OWN_WEIGHTS), ())))


def missing_graphs(stage: str, graphs: Collection[str]) -> list[str]:
    """What a stage would have to run and cannot, where these are the graphs (every encoder under the one name)."""
    groups = RUNS.get(stage.removeprefix(OWN_WEIGHTS), ())
    return sorted(group[0] for group in groups if not set(group) & set(graphs))


def quantized_graphs(recipe: Json, graphs: Collection[str]) -> list[tuple[str, str]]:
    """The stages that compare quantized weights, each with the graph whose weights they are."""
    found = []
    for name, plan in (recipe.get("quantization") or {}).items():
        holders = HEADS if name == EMBEDDINGS else (name,)
        graph = next((graph for graph in holders if graph in graphs), None)
        if graph is not None and plan["method"] != "none":
            found.append((CALIBRATED if plan.get("algorithm") == "gptq" else WEIGHTS, graph))
    return found


def reason_to_skip(recipe: Json, model_type: str = "") -> str | None:
    """Why an artifact is not compared with its own weights; None if it is, "" where there is nothing to say."""
    plans = (recipe.get("quantization") or {}).values()
    quantized = [plan for plan in plans if plan["method"] != "none"]
    rounded = "rounds activations as well: no weights compute the same"
    if not quantized:
        return ""
    if any(plan["method"] not in BLOCKS for plan in quantized):
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


def unproven(
    recipe: Json, graphs: Mapping[str, Grid | None], model_type: str, checks: Collection[tuple[str, str]]
) -> Iterator[str]:
    """What a recipe promises and none of the checks compares: `vision`, `weights[decoder_model_merged]`.

    Args:
        graphs: what `promised_graphs` says.
        checks: stage and name of each.
    """
    stages = {stage for stage, _ in checks}
    kinds = set(map(kind_of, graphs))
    own = [f"{OWN_WEIGHTS}{stage}" for stage in OWN_STAGES] if reason_to_skip(recipe, model_type) is None else []
    unasked = {"accuracy", *(() if recipe["parity"].get("held_out") else {"exam"})}  # accuracy sums up the exam
    wanted = [stage for stage in (*RUNS, *own) if stage not in unasked and not missing_graphs(stage, kinds)]
    yield from (stage for stage in wanted if stage not in stages)
    bound = [("vision", grid_case(grid)) for grid in graphs.values() if grid is not None]
    for stage, name in (*bound, *quantized_graphs(recipe, kinds)):
        if (stage, name) not in checks:
            yield f"{stage}[{name}]"
