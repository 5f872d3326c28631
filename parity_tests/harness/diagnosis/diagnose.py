"""What a failing result looks like: compares it with PyTorch with each known mistake in it (`suspects.py`).

If the artifact's result is far closer to that than to the truth, the mistake is named; if none explains it, the first
layer that differs (`layer_trace.py`). No verdict depends on this; it turns "max_abs 4.1" into a place to look. What
rounding the weights costs is no mistake: where a stage compares the graph with its own weights as well, that one is
diagnosed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from qwen3vl_export.promise import DEQUANTIZED
from qwen3vl_export.runtime.arrays import Floats

from ..cases.matrix import Case
from ..checks.dequantized import dequantized_bench
from ..judging.outcome import Outcome
from ..sides.bench import Bench
from ..sides.pytorch.reference import Reference
from .layer_trace import describe_point, trace_decoder, trace_vision
from .suspects import DECODER_SUSPECTS, VISION_SUSPECTS, DecoderSuspect

DIAGNOSED = 4  # failures of one stage that are diagnosed: each costs a call of PyTorch for every suspect


def diagnose(bench: Bench, outcome: Outcome, case: Case | None) -> Outcome:
    """The outcome with the suspect that explains it best, else with the first layer that differs, if there is one."""
    if outcome.stage.startswith(DEQUANTIZED):
        bench = dequantized_bench(bench)
    stage = outcome.stage.removeprefix(DEQUANTIZED)
    if outcome.stage == stage and f"{DEQUANTIZED}{stage}" in bench.profile.rules:
        return outcome
    if case is None or stage not in ("vision", "decoder"):
        return outcome
    bench.diagnoses[outcome.stage] += 1
    if bench.diagnoses[outcome.stage] > DIAGNOSED:
        return outcome
    try:
        candidate, truth, suspects = suspects_of(bench, stage, case)
        bench.make_room()
        best = closest(bench.reference, candidate, truth, suspects, bench.profile.settings["explained_ratio"])
        best = best or first_divergence(bench, stage, case)
    except Exception:  # the outcome already says what failed
        return outcome
    return replace(outcome, diagnosis=best) if best else outcome


def first_divergence(bench: Bench, stage: str, case: Case) -> str | None:
    """The first layer of the stage's graph that is off; None if the graph is right for its inputs."""
    trail = {"vision": trace_vision, "decoder": trace_decoder}[stage](bench, case)
    return f"wrong from {describe_point(trail.graph, trail.first)} on" if trail is not None and trail.first else None


def closest(
    reference: Reference,
    candidate: Floats,
    truth: Floats,
    suspects: dict[str, Callable[[], Floats]],
    explained_ratio: float,
) -> str | None:
    """The suspect whose result explains the candidate's distance from the truth, or None if none does."""
    error = relative_distance(candidate, truth)
    if not np.isfinite(error):
        return None

    def distance(suspect: Callable[[], Floats]) -> float:
        return relative_distance(candidate, suspect())

    computations = [partial(distance, suspect) for suspect in suspects.values()]
    distances = dict(zip(suspects, reference.together(computations), strict=True))
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] <= explained_ratio * error else None


def suspects_of(bench: Bench, stage: str, case: Case) -> tuple[Floats, Floats, dict[str, Callable[[], Floats]]]:
    """The artifact's result, the truth, and each suspect's result when called."""
    reference = bench.reference
    results: dict[str, Callable[[], Floats]]
    if stage == "vision":
        pixels, grid = bench.vision_inputs(case)
        results = {name: partial(suspect, reference, pixels, grid) for name, suspect in VISION_SUSPECTS.items()}
        return bench.encode(pixels, grid), reference.vision(pixels, grid), results
    inputs = bench.inputs(case)
    start = reference.prefill(inputs)
    mask = inputs.attention_mask
    seen = mask.astype(bool)
    logits = bench.decode(start.inputs_embeds, mask, start.position_ids)

    def compute(suspect: DecoderSuspect) -> Floats:
        unpadded: Floats = suspect(reference, start, mask)[seen]
        return unpadded

    results = {name: partial(compute, suspect) for name, suspect in DECODER_SUSPECTS.items()}
    return logits[seen], start.logits[seen], results


def relative_distance(candidate: Floats, truth: Floats) -> float:
    """Relative L2; infinite where it is not a number."""
    error = float(np.linalg.norm(candidate.astype(np.float64) - truth))
    relative = error / max(float(np.linalg.norm(truth)), 1e-30)
    return relative if np.isfinite(relative) else np.inf
