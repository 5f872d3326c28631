"""The second reference: PyTorch with the weights of a quantized artifact, dequantized.

Against the checkpoint, a quantized graph is off by its rounding error, which on a narrow model is larger than what a
mistake in the graph would cause. So the two are separate questions: is the graph right (stages `dequantized_*`: both
sides compute with the dequantized weights, and the limits are those of the compute dtype), and what did rounding cost
(all other stages: against the checkpoint in float32).

An artifact that rounds activations as well is compared with them in floating point
(`sides/artifact/float_activations.py`); what rounding them adds is measured apart (`checks/rounded.py`).

onnxruntime dequantizes, as in `sides/artifact/operator.py`. Knows artifacts and transformers' modules; judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER
from qwen3vl_export.evidence import Kind, Rule
from qwen3vl_export.evidence.answers import cost_stages
from qwen3vl_export.promise import (
    CHUNKED,
    DEQUANTIZED,
    DEQUANTIZED_STAGES,
    ROUNDED,
    graph_kind,
    own_weights_stages,
    quantized_graphs,
    rounding_graphs,
)

from ..cases.matrix import Case
from ..judging.outcome import Finding
from ..judging.verdicts import Profile, load_compute_profile
from ..sides.artifact.dequantization import dequantized_weights, place_of
from ..sides.artifact.float_activations import Change, changed_model, float_activations
from ..sides.artifact.probe import module_of
from ..sides.artifact.smoothing import Exponents, find_exponents, fold_makers, is_smoothed
from ..sides.bench import Bench
from ..sides.pytorch.forward import to_numpy
from ..sides.pytorch.reference import Reference
from ..sides.pytorch.reference_cache import Store, recorded_files, scope_of
from .induction import run_stage

IN_4_BITS = f"{EMBEDDINGS}_in_4_bits"  # rules of a profile for a table in 4 bits


def prefixed_stages(stages: tuple[str, ...] = (*DEQUANTIZED_STAGES, CHUNKED)) -> list[str]:
    return [f"{DEQUANTIZED}{stage}" for stage in stages]


def add_own_weights_rules(profile: Profile, recipe: Mapping[str, Any], model_type: str) -> Profile:
    """The profile with rules for the stages that an artifact's own weights add.

    In `dequantized_*` these are the rules of the compute dtype, because both sides compute with the quantized weights.
    """
    stages = own_weights_stages(recipe, model_type)
    if not stages:
        return profile
    exact = load_compute_profile(recipe["dtype"])
    rules = {stage: exact.rules[stage.removeprefix(DEQUANTIZED)] for stage in stages if stage.startswith(DEQUANTIZED)}
    measured = {stage: () for stage in stages if stage.startswith(ROUNDED)}
    table = (recipe.get("quantization") or {}).get(EMBEDDINGS, {})
    if table.get("method") == "int4" and IN_4_BITS in profile.rules:
        profile = replace(profile, rules={**profile.rules, EMBEDDINGS: profile.rules[IN_4_BITS]})
    stated = state_cost(recipe["parity"].get("cost"), profile, stages)
    return replace(profile, rules={**profile.rules, **stated, **rules, **measured})


def state_cost(
    limits: Mapping[str, float | None] | None, profile: Profile, stages: Sequence[str]
) -> dict[str, tuple[Rule, ...]]:
    """The rules of the stages about the cost of quantized weights, as a recipe states them: none where it has no limit.

    Answers to the exam are judged by the profile.

    Args:
        stages: that the artifact's own weights add.
    """
    if limits is None:
        return {}
    kinds: dict[str, Kind] = {"mean_kl": "max", "top1_agreement": "min"}
    rules = tuple(
        Rule(measure, kind, limit, "What the recipe allows.", "parity.cost of the recipe")
        for measure, kind in kinds.items()
        if (limit := limits.get(measure)) is not None
    )
    about_cost = cost_stages(stages)
    of_logits = {stage for stage in about_cost if any(r.measure == "worst_kl" for r in profile.rules.get(stage, ()))}
    return {stage: rules if stage in of_logits else () for stage in about_cost}


def dequantized_check(stage: str, case: Case) -> Callable[[Bench], Finding]:
    """The check of one stage on one case, against PyTorch with the artifact's dequantized weights."""
    return lambda bench: run_stage(stage, dequantized_bench(bench), case)


def dequantized_bench(bench: Bench) -> Bench:
    """The same artifact and runtime with the second reference, opened on the first call."""
    if bench.dequantized is None:
        artifact, first = bench.artifact, bench.reference
        profile = load_compute_profile(artifact.manifest.recipe["dtype"])
        graphs = {name: record.sha256 for name, record in artifact.manifest.files.items() if name.startswith("onnx/")}
        store = first.results.store
        if store is not None:
            files = {**recorded_files(artifact.manifest.checkpoint), **graphs}
            files |= {"precision": artifact.precision, "head": bench.head}
            store = Store(store.root, scope_of(files, first.device.type), store.budget)
        change = partial(load_dequantized_weights, artifact)
        quantized = quantized_graphs(artifact.manifest.recipe, set(map(graph_kind, artifact.manifest.graphs)))
        second = Reference(
            bench.checkpoint,
            store,
            change,
            neighbours=[first],
            adapters=first.adapters,
            streamed=first.streamed,
            device=first.device,
            tower=first if VISION_ENCODER not in {graph for _, graph in quantized} else None,
            room=first.room,
            head=first.head,
        )
        first.neighbours.append(second)
        bench.dequantized = replace(float_bench(bench), reference=second, profile=profile, candidate_seconds=0.0)
    return bench.dequantized


def float_bench(bench: Bench) -> Bench:
    """The bench with a copy of its runtime that rounds no activations, if the artifact does."""
    manifest = bench.artifact.manifest
    if not rounding_graphs(manifest.recipe, manifest.facts.model_type):
        return bench
    return changed_bench(bench, float_activations, "in floating point")


def changed_bench(bench: Bench, change: Change, name: str) -> Bench:
    """The bench with a copy of its runtime whose graphs are changed in memory, and results of its own."""
    return replace(bench, runtime=changed_model(bench.runtime, change), results=bench.results.variant(name))


def load_dequantized_weights(artifact: Artifact, prefix: str, module: nn.Module) -> None:
    """Replace every weight of a module that the artifact stores quantized by its dequantized values.

    Args:
        prefix: the module's name in the model; "" is the model itself.
    """
    names = [".".join(filter(None, (prefix, name))) for name, _ in module.named_modules()]
    modules = {module_of(f"{name}.weight"): module.get_submodule(name[len(prefix) :].strip(".")) for name in names}
    smoothed: dict[str, Exponents] = {}
    for graph, path in graphs_of(artifact).items():
        for parameter, _, rows in dequantized_weights(path, lambda parameter: place_of(parameter)[0] in modules):
            name, attribute = place_of(parameter)
            replaced = getattr(modules[name], attribute)
            if is_smoothed(artifact.manifest.recipe, graph_kind(graph)):
                smoothed[str(name)] = find_exponents(str(name), rows, to_numpy(replaced).reshape(rows.shape))
            values = torch.from_numpy(rows).reshape(replaced.shape)
            setattr(modules[name], attribute, nn.Parameter(values, requires_grad=False))
    fold_makers(modules, smoothed)


def graphs_of(artifact: Artifact) -> dict[str, Path]:
    """One graph for each weight file: all encoders share one, and so do both embedding graphs."""
    names = artifact.manifest.graphs
    encoder = artifact.manifest.encoders[0].graph if artifact.manifest.encoders else VISION_ENCODER
    heads = [name for name in (EMBEDDINGS, EMBED_TOKENS) if name in names][:1]
    return {name: artifact.graph_path(name) for name in (encoder, *heads, DECODER) if name in names}
