"""What a recipe promises: the graphs of an artifact in each precision, and the checks in its evidence.

Recipes are plain data, as in manifests, so that a build, the reader of manifests, the parity harness and `publish`
derive the same graphs and checks. Knows recipes; nothing about files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from . import contract
from .contract import (
    DECODER,
    EMBED_TOKENS,
    EMBEDDING,
    EMBEDDINGS,
    MOST_FORCED_PIXELS,
    RERANKER,
    TEXT,
    VISION_ENCODER,
)

Json = Mapping[str, Any]
Grid = tuple[int, int]  # height and width in patches

GRAPH_DIR = "onnx"
TABLES = (EMBEDDINGS, EMBED_TOKENS)  # both hold the token table
GRAPHS = (VISION_ENCODER, *TABLES, DECODER)
ONNXRUNTIME = "onnxruntime"
GENAI = "onnxruntime-genai"
TRANSFORMERS_JS = "transformers.js"
SECOND_DECODER = "decoder_model"  # the decoder with a default where `decoder_model_merged` requires an input
CACHE = "cache"  # of a recipe's `quantization`: keys and values, beside the weights of graphs
QUANTIZED_CACHE = "quantized_cache"  # stage: integers in the cache stand for the keys and values that were computed
TASK = "task"  # stage: a user's question, which no recipe promises
PACKAGED = "packaged"  # stage: the second decoder computes what the first does
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
    PACKAGED: ((DECODER,),),
    "exam": ALL,
    "accuracy": ALL,
    TASK: ALL,
    QUANTIZED_CACHE: ALL,
    "hidden_states": ((DECODER,),),
    "answer_logits": ((DECODER,),),
    "embedding": ALL,
    "score": ALL,
}
PREPARED = ("prompt", "preprocess", "positions", "vision", "embeddings", "chunked")  # whatever the head
HEAD_STAGES: Mapping[str, tuple[str, ...]] = {  # what else is compared, by head
    TEXT: ("sampling", "decoder", "prefill", "teacher_forced", "decode", "generate", PACKAGED, "exam", "accuracy"),
    EMBEDDING: ("hidden_states", "embedding"),
    RERANKER: ("answer_logits", "score"),
}
WEIGHTS = "weights"
CALIBRATED = "calibrated_weights"  # calibration chose the rounding
FROM_SOURCE = "source_weights"  # nothing was rounded
DEQUANTIZED = "dequantized_"  # prefix of stages in which PyTorch has the artifact's dequantized weights
DEQUANTIZED_STAGES = ("vision", "embeddings", "decoder", "decode", "generate", "hidden_states", "answer_logits")
EXPERTS_AS_OPERATOR = "operator"  # of `experts` in a recipe: in float16, too
CHUNKED = "chunked"  # compares an artifact with itself, which one that rounds activations by call need not equal
ROUNDED = "rounded_"  # prefix of stages that compare an artifact that rounds activations with itself, rounding none
ROUNDED_STAGES = {"vision": VISION_ENCODER, "decoder": DECODER}  # each with the graph it is about


def cache_dtype(recipe: Json) -> str:
    """The dtype of the keys and values of a recipe's decoder, as `contract.decoder` takes it."""
    plan = (recipe.get("quantization") or {}).get(CACHE) or {}
    return "int8" if plan.get("method") == "int8" else "float"


def head_of(recipe: Json) -> str:
    """What the last hidden states of a recipe's model are for, as far as it says."""
    return recipe.get("head") or TEXT


def head_stages(recipe: Json) -> tuple[str, ...]:
    """The stages that a recipe's model may be compared in, in order."""
    stages = (*PREPARED, *HEAD_STAGES[head_of(recipe)])
    return tuple(stage for stage in RUNS if stage in stages)


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
    changed = {key: values[key] for key in ("dtype", "quantization", "experts") if key in values}
    return {**recipe, **changed, "parity": parity, "precisions": {}}


def broken_promises(manifest: Json) -> Iterator[str]:
    """Describe how a manifest differs from what its recipe promises; yields nothing if it does not.

    Args:
        manifest: JSON values of a manifest's form.
    """
    recipe, files = manifest["recipe"], manifest["files"]
    promised = promised_graphs(recipe, manifest["facts"]["patch_size"])
    for height, width in recipe["vision"]["sizes"]:
        if height * width > MOST_FORCED_PIXELS:
            yield f"its recipe names a picture size of {height}x{width}, over {MOST_FORCED_PIXELS} pixels"
    if (head := manifest["facts"]["head"]) != head_of(recipe):
        yield f"its model is one for {head}, its recipe asks for {head_of(recipe)}"
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
            if name == DECODER and has_two_decoders(recipe):
                names.append(second_decoder(entry["file"]))
            for file in names:
                if file not in files:
                    yield f"graph {name}{suffix} is made of {file}, which its files do not list"
                elif not files[file]["bytes"]:
                    yield f"graph {name}{suffix} is made of {file}, which is empty"
            if entry["file"] not in (graph_file(name, built) for built in ("", *precisions)):
                yield f"graph {name}{suffix} is in {entry['file']}, not in {graph_file(name, precision)}"


def graph_file(graph: str, precision: str) -> str:
    """The name in an artifact of a graph's `.onnx` file: `onnx/decoder_model_merged_q4.onnx`."""
    return f"{GRAPH_DIR}/{suffixed(graph, precision)}.onnx"


def has_two_decoders(recipe: Json) -> bool:
    """Whether runtimes are packaged of which one needs the decoder to require an input and another refuses that
    (`packaging/decoders.py`)."""
    return {GENAI, TRANSFORMERS_JS} <= {*(recipe.get("packaging") or {}).get("runtimes", ())}


def second_decoder(file: str) -> str:
    """The second decoder's file, beside the first: `onnx/decoder_model_q4.onnx`."""
    return file.replace(DECODER, SECOND_DECODER)


def suffixed(name: str, precision: str) -> str:
    """What a graph, a report or an artifact of this name is called in a precision: `decoder_model_merged_q4`."""
    return f"{name}_{precision}" if precision else name


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
    return frozenset(chain(*_groups_run(stage)))


def missing_graphs(stage: str, graphs: Collection[str]) -> list[str]:
    """The graphs that a stage needs and that are not among `graphs`, by their names in recipes."""
    return sorted(group[0] for group in _groups_run(stage) if not set(group) & set(graphs))


def _groups_run(stage: str) -> tuple[tuple[str, ...], ...]:
    return RUNS.get(stage.removeprefix(DEQUANTIZED).removeprefix(ROUNDED), ())


def quantized_graphs(recipe: Json, graphs: Collection[str]) -> list[tuple[str, str]]:
    """The stages that compare quantized weights, each with the graph that has them."""
    pairs = []
    for name, plan in weight_plans(recipe).items():
        holders = TABLES if name == EMBEDDINGS else (name,)
        graph = next((graph for graph in holders if graph in graphs), None)
        if graph is not None and plan["method"] != "none":
            pairs.append((_weights_stage(plan), graph))
    return pairs


def _weights_stage(plan: Json) -> str:
    if plan["method"] == "source":
        return FROM_SOURCE
    return CALIBRATED if plan.get("algorithm") == "gptq" else WEIGHTS


def weight_plans(recipe: Json) -> Mapping[str, Json]:
    """How a recipe quantizes the weights of its graphs, by graph."""
    return {name: plan for name, plan in (recipe.get("quantization") or {}).items() if name != CACHE}


def own_weights_stages(recipe: Json, model_type: str = "") -> list[str]:
    """The stages that tell a wrong graph from the cost of its precision; none where nothing is quantized.

    They compare with PyTorch with the artifact's dequantized weights, and activations that are rounded with others.

    Args:
        model_type: of the checkpoint, where it is known.
    """
    plans = (recipe.get("quantization") or {}).values()
    if all(plan["method"] == "none" for plan in plans):
        return []
    rounding = rounding_graphs(recipe, model_type)
    stages = head_stages(recipe)
    rounded = [f"{ROUNDED}{stage}" for stage, graph in ROUNDED_STAGES.items() if graph in rounding and stage in stages]
    exact = [stage for stage in stages if stage in DEQUANTIZED_STAGES or (stage == CHUNKED and DECODER in rounding)]
    cached = [QUANTIZED_CACHE] if cache_dtype(recipe) != "float" else []
    return [*(f"{DEQUANTIZED}{stage}" for stage in exact), *rounded, *cached]


def rounding_graphs(recipe: Json, model_type: str = "") -> frozenset[str]:
    """The graphs that round activations to 8 bits when they run: with `int8_dynamic`, with `accuracy_level: 4`, in
    onnxruntime's operator for 8-bit experts, at any level, and where keys and values are stored in 8 bits."""
    is_ort = recipe.get("target") == "ort"
    has_qmoe = model_type == "qwen3_vl_moe" and has_expert_operator(recipe)
    return frozenset(
        graph
        for graph, plan in weight_plans(recipe).items()
        if plan["method"] == "int8_dynamic"
        or (is_ort and plan["method"] != "none" and plan.get("accuracy_level") == 4 and graph != EMBEDDINGS)
        or (has_qmoe and graph == DECODER and plan["method"] == "int8")
        or (graph == DECODER and cache_dtype(recipe) != "float")
    )


def has_expert_operator(recipe: Json) -> bool:
    """Whether one operator, `MoE` or `QMoE`, computes a mixture of experts, and not a Loop."""
    in_loop = recipe["dtype"] == "float16" and recipe.get("experts") != EXPERTS_AS_OPERATOR
    return recipe.get("target") == "ort" and not in_loop


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
    own = own_weights_stages(recipe, model_type)
    optional = {"accuracy", *(() if recipe["parity"].get("held_out") else {"exam"})}  # accuracy sums up the exam
    if not has_two_decoders(recipe):
        optional.add(PACKAGED)
    required = [
        stage for stage in (*head_stages(recipe), *own) if stage not in optional and not missing_graphs(stage, kinds)
    ]
    yield from (stage for stage in required if stage not in stages)
    bound = [("vision", grid_case(grid)) for grid in graphs.values() if grid is not None]
    for stage, name in (*bound, *quantized_graphs(recipe, kinds)):
        if (stage, name) not in checks:
            yield f"{stage}[{name}]"
