"""Greedy generation proven by induction: PyTorch reads the artifact's tokens once instead of generating its own.

The artifact generates T tokens. PyTorch reads prompt and tokens in one call. If at every position PyTorch's best token,
given the tokens before it, is the one the artifact chose, then by induction PyTorch generates the same T tokens; where
it is not, both must be near-ties by the rule of `stages.generate`. One call takes the place of T, and no history
differs between the sides: the steps after a near-tie are compared too, on the tokens the artifact continued with.

The stages have the names, measures and limits of those in `stages.py`, which compute step by step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwen3vl_export.runtime.arrays import Floats
from qwen3vl_export.runtime.positions import visual_tokens

from ..cases.matrix import Case
from ..judging import measures
from ..judging.measures import logit_closeness
from ..judging.outcome import Finding
from ..sides.bench import Bench
from ..sides.pytorch.reference import Greedy
from .heads import HEAD_STAGES
from .stages import STAGES, add_routing, differing_tokens, reference_step_logits, worst_step


def read_back(bench: Bench, case: Case) -> tuple[Greedy, Floats]:
    """The artifact's tokens [B, T] and logits [B, T, V], and PyTorch's logits of the same steps [B, T, V].

    The token of a picture that was generated cannot be read back, because it would stand for a picture: the steps end
    with the one that chose it.
    """
    generated = bench.generate(bench.prepared(case), bench.matrix.tokens_of(case))
    visual = visual_tokens(generated.ids, bench.artifact.manifest.facts).any(axis=0)
    steps = int(visual.argmax()) + 1 if visual.any() else generated.ids.shape[1]
    logits = bench.reference.continued(bench.inputs(case), generated.ids[:, : steps - 1]).logits
    return Greedy(generated.ids[:, :steps], generated.logits[:, :steps]), logits


def decode(bench: Bench, case: Case) -> Finding:
    """Each step of decoding with the cache, on the artifact's own tokens: logits of every new token."""
    generated, logits = read_back(bench, case)
    truth = reference_step_logits(bench, case, Greedy(generated.ids, logits))
    where = f"worst at step {worst_step(generated.logits, truth.logits)} of {logits.shape[1]}"
    closeness = logit_closeness(generated.logits, truth.logits)
    return add_routing(truth, Finding(closeness, compared=logits.size, where=where))


def generate(bench: Bench, case: Case) -> Finding:
    """The runtime's own greedy generation, token for token: PyTorch chooses the same at every step."""
    generated, logits = read_back(bench, case)
    margin = bench.profile.settings["near_tie_margin"]
    truth = logits.argmax(-1)
    differences = [
        measures.explain_difference(
            row,
            step,
            int(generated.ids[row, step]),
            generated.logits[row, step],
            int(truth[row, step]),
            logits[row, step],
            margin,
        )
        for row, step in np.argwhere(generated.ids != truth).tolist()
    ]
    prefixes = [measures.common_prefix(*rows) for rows in zip(generated.ids.tolist(), truth.tolist(), strict=True)]
    return differing_tokens(truth.size, prefixes, differences)


BY_INDUCTION: dict[str, Callable[[Bench, Case], Finding]] = {"decode": decode, "generate": generate}


def run_stage(stage: str, bench: Bench, case: Case) -> Finding:
    """One stage on one case: by induction where PyTorch's side is streamed."""
    by_induction = bench.reference.streamed and stage in BY_INDUCTION
    return (BY_INDUCTION if by_induction else STAGES | HEAD_STAGES)[stage](bench, case)
