"""A cache in 8 bits against the keys and values that it stands for: the same artifact with its cache in floating point.

Both divide them by the same scales and read the same prompt. The first layer makes the same keys and values on both
sides, so that each integer must be the nearest one; further on, layers have read what the cache before them has
rounded. That the graph is right with a cache in floating point is proven by the stages `dequantized_*`; what rounding
costs is measured against the checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..cases.matrix import Case
from ..judging.measures import largest, max_abs
from ..judging.outcome import Finding
from ..judging.scales import in_units, rms
from ..sides.artifact.float_activations import float_cache
from ..sides.bench import Bench
from .dequantized import changed_bench
from .rounded import on_both

LAYER = slice(2)  # arrays of the first layer: keys and values
ENDS = (-128, 127)  # larger keys or values are cut off there


def quantized_cache(case: Case, bench: Bench) -> Finding:
    """Keys and values of every layer at every token of the prompt."""
    prepared = bench.prepared(case)
    cached, computed = on_both(bench, float_cached_bench(bench), lambda side: side.prefill(prepared, None))
    layers = [*zip(cached.cache, computed.cache, strict=True)]
    values = {
        "first_layer_steps": max_abs(cached.cache[LAYER], computed.cache[LAYER]),
        "cut_off": largest(float(np.isin(integers, ENDS).mean()) for integers, _ in layers),
        "scaled_cache_rms": largest(in_units(rms(integers - truth), rms(truth)) or 0.0 for integers, truth in layers),
    }
    return Finding(values, compared=cached.cache.size)


def float_cached_bench(bench: Bench) -> Bench:
    """The same artifact with its cache in floating point and everything else as shipped, opened on the first call."""
    if bench.float_cached is None:
        changed = changed_bench(bench, float_cache, "with its cache in floating point")
        bench.float_cached = replace(changed, candidate_seconds=0.0)
    return bench.float_cached
