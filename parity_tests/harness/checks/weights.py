"""Quantized weights against the checkpoint's, block by block.

A wrong scale of one block would not show in the logits, which rounding moves anyway; it shows against the weight.

Knows parameters' names; nothing about cases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from qwen3vl_export.contract import VISION_ENCODER
from qwen3vl_export.promise import CALIBRATED, FROM_SOURCE, WEIGHTS
from qwen3vl_export.runtime.arrays import Floats

from ..judging.measures import nmse
from ..judging.outcome import Finding
from ..sides.artifact.dequantization import dequantized_weights, place_of
from ..sides.artifact.probe import module_of
from ..sides.artifact.smoothing import find_exponents, is_smoothed
from ..sides.bench import Bench

STAGES = (WEIGHTS, CALIBRATED, FROM_SOURCE)
VALUES = 1 << 18  # of a weight that are compared at a time: 1 MB, which caches hold


def weights_check(graph: str) -> Callable[[Bench], Finding]:
    """The check of one graph."""
    return partial(weights, graph)


def weights(graph: str, bench: Bench) -> Finding:
    """Every quantized weight of a graph against the checkpoint's.

    `worst_block_error` is the largest difference in a block over the block's largest weight.
    """
    encoders = bench.artifact.manifest.encoders  # all of them read one file
    path = bench.artifact.graph_path(encoders[0].graph if graph == VISION_ENCODER else graph)
    names = module_names(bench.reference.model)
    worst, where, compared, errors = 0.0, "", 0, []
    for parameter, block, dequantized in dequantized_weights(path):
        module, attribute = place_of(parameter)
        truth = bench.reference.parameter(f"{names[module]}.{attribute}").reshape(dequantized.shape)
        if is_smoothed(bench.artifact.manifest.recipe, graph):
            truth = find_exponents(names[module], dequantized, truth).apply(torch.from_numpy(truth)).numpy()
        errors.append(nmse(dequantized, truth) or 0.0)
        compared += truth.size
        count = max(1, VALUES // dequantized.shape[1])
        for start in range(0, len(truth), count):
            block_error = block_errors(dequantized[start : start + count], truth[start : start + count], block)
            if not block_error.max() <= worst:  # NaN is worse than anything
                row, column = np.unravel_index(int(np.nan_to_num(block_error, nan=np.inf).argmax()), block_error.shape)
                worst, where = float(block_error.max()), f"worst in {parameter}, row {start + row}, block {column}"
    return Finding(
        {"worst_block_error": worst if compared else None, "nmse": max(errors, default=None)}, compared, where
    )


def module_names(model: Any) -> dict[str | None, str]:
    """The names of PyTorch's modules by those that `place_of` gives."""
    return {module_of(f"{name}.weight"): name for name, _ in model.named_modules()}


def block_errors(dequantized: Floats, truth: Floats, block: int) -> Floats:
    """[N, blocks]: largest difference over largest weight, inf where only the weight is zero."""
    count, width = truth.shape
    pad = [(0, 0), (0, -width % block)]
    difference, size = (
        np.abs(np.pad(array, pad)).reshape(count, -1, block).max(-1) for array in (dequantized - truth, truth)
    )
    errors: Floats = np.divide(difference, size, out=np.where(difference > 0, np.inf, 0.0), where=size > 0)
    return errors
