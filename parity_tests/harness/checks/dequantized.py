"""The second reference: PyTorch with the very weights that a quantized artifact holds.

Against the checkpoint, a graph of small integers is off by what rounding cost, and on a narrow model that is more than
a mistake in the graph would cost. So each is asked by itself: is the graph right (stages `dequantized_*`: both sides
compute with what the integers stand for, and the limits are those of the dtype that is computed with), and what did
rounding cost (all other stages: against the checkpoint in float32).

Integers are read back by onnxruntime, as in `weight_checks.py`. Knows artifacts and transformers' modules; judges
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER
from qwen3vl_export.promise import OWN_STAGES, OWN_WEIGHTS

from ..cases.matrix import Case
from ..judging.outcome import Finding
from ..judging.verdicts import Profile, load_profile
from ..sides.bench import Bench
from ..sides.reference import Reference
from ..sides.reference_cache import Store, scope_of
from .stages import STAGES
from .weights import modules_of, place_of, restored_weights


def stages_named(stages: tuple[str, ...] = OWN_STAGES) -> list[str]:
    return [f"{OWN_WEIGHTS}{stage}" for stage in stages]


def profile_with_own(profile: Profile, dtype: str) -> Profile:
    """A profile that judges the stages `dequantized_*` too: by the rules of the dtype that is computed with, because
    what quantization changed is on both sides."""
    exact = load_profile("float16" if dtype == "float16" else "float32")
    own = {f"{OWN_WEIGHTS}{stage}": exact.rules[stage] for stage in OWN_STAGES}
    return replace(profile, rules={**profile.rules, **own})


def check(stage: str, case: Case) -> Callable[[Bench], Finding]:
    """The check of one stage on one case, beside PyTorch with the artifact's own weights."""
    return lambda bench: STAGES[stage](beside_own_weights(bench), case)


def beside_own_weights(bench: Bench) -> Bench:
    """The same artifact and runtime beside the second reference."""
    if bench.dequantized is None:
        artifact, first = bench.artifact, bench.reference
        exact = load_profile("float16" if artifact.manifest.recipe["dtype"] == "float16" else "float32")
        graphs = {name: record.sha256 for name, record in artifact.manifest.files.items() if name.startswith("onnx/")}
        store = first.store
        if store is not None:
            files = {**artifact.manifest.checkpoint["files"], **graphs, "precision": artifact.precision}
            store = Store(store.root, scope_of(files), store.budget)
        second = Reference(bench.checkpoint, store, partial(give_own_weights, artifact), others=[first])
        first.others.append(second)
        bench.dequantized = replace(bench, reference=second, profile=exact, candidate_seconds=0.0, remembered={})
    return bench.dequantized


def give_own_weights(artifact: Artifact, model: nn.Module) -> None:
    """Replace every weight that the artifact holds quantized by what its integers stand for."""
    untie(model)
    modules = modules_of(model)
    for path in graphs_of(artifact):
        for parameter, _, rows in restored_weights(path):
            module, attribute = place_of(parameter)
            values = torch.from_numpy(rows).reshape(getattr(modules[module], attribute).shape)
            setattr(modules[module], attribute, nn.Parameter(values, requires_grad=False))


def untie(model: Any) -> None:
    """An output head of its own: an artifact may hold table and head in different bits."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)


def graphs_of(artifact: Artifact) -> list[Path]:
    """One graph for each weight file: encoders read one, and so do both embedding heads."""
    names = artifact.manifest.graphs
    encoder = artifact.manifest.encoders[0].graph if artifact.manifest.encoders else VISION_ENCODER
    heads = [name for name in (EMBEDDINGS, EMBED_TOKENS) if name in names][:1]
    return [artifact.graph_path(name) for name in (encoder, *heads, DECODER) if name in names]
