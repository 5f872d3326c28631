"""What rounding activations costs by itself: an artifact that does against itself in float32, on the same inputs.

The stages `dequantized_*` prove such an artifact with its activations in floating point; what it computes as shipped
differs from that by these measures, and by nothing else. They have no limit of their own: the stages against the
checkpoint judge what the whole precision costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qwen3vl_export.promise import ROUNDED

from ..cases.matrix import Case
from ..judging.outcome import Finding
from ..sides.bench import Bench
from .dequantized import dequantized_bench
from .stages import logits_finding, vision_finding

Result = TypeVar("Result")


def rounded_vision(case: Case, bench: Bench) -> Finding:
    """Features and each DeepStack map, of the same patches."""
    pixels, grid = bench.vision_inputs(case)
    candidate, reference = on_both(bench, dequantized_bench(bench), lambda side: side.encode(pixels, grid))
    return vision_finding(candidate, reference, bench.reference.blocks, grid)


def rounded_decoder(case: Case, bench: Bench) -> Finding:
    """Logits of the decoder at every token of the prompt, of the same rows."""
    inputs = bench.inputs(case)
    unrounded = dequantized_bench(bench)
    start = unrounded.reference.prefill(inputs)
    call = (start.inputs_embeds, inputs.attention_mask, start.position_ids)
    candidate, reference = on_both(bench, unrounded, lambda side: side.decode(*call))
    return logits_finding(candidate, reference, inputs)


def on_both(bench: Bench, unrounded: Bench, compute: Callable[[Bench], Result]) -> tuple[Result, Result]:
    """What the artifact computes with its activations rounded and in floating point, never both in memory."""
    results = []
    for side, idle in ((bench, unrounded), (unrounded, bench)):
        idle.runtime.sessions.close()
        results.append(compute(side))
    return results[0], results[1]


CHECKS: dict[str, Callable[[Case, Bench], Finding]] = {
    f"{ROUNDED}vision": rounded_vision,
    f"{ROUNDED}decoder": rounded_decoder,
}
