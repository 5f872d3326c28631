"""Quantization errors of weights: measured while the weights are written, logged, and recorded in the manifest.

An error is relative: the L2 norm of the change over the L2 norm of the weight. `verify` measures what it does to the
model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...contract import VISION_ENCODER


def summarize_errors(errors: Mapping[str, float]) -> dict[str, Any]:
    """The manifest's record of the errors of one graph's weights.

    Args:
        errors: parameter -> relative L2 error; not empty.
    """
    worst = max(errors, key=lambda parameter: errors[parameter])
    return {
        "tensors": len(errors),
        "mean": round(sum(errors.values()) / len(errors), 5),
        "worst": round(errors[worst], 5),
        "worst_tensor": worst,
        "by_tensor": {parameter: round(error, 5) for parameter, error in errors.items()},
    }


def report_errors(graph: str, method: str, errors: Mapping[str, float], log: Callable[[str], None]) -> None:
    """Log the error of each tensor and of the graph, and a warning where it is known to be too large."""
    if method == "none" or not errors:
        return
    summary = summarize_errors(errors)
    for parameter, error in errors.items():
        log(f"{error:8.2%} relative error: {parameter}")
    log(
        f"{graph:24} {summary['tensors']} weights in {method}: relative error {summary['mean']:.3g} on average, "
        f"{summary['worst']:.3g} at most ({summary['worst_tensor']})"
    )
    if method == "int4" and graph.startswith(VISION_ENCODER):
        log(
            f"warning: {graph}: 4-bit weights have a relative error of {summary['mean']:.1%}, which accumulates over "
            "the layers of the vision tower; run verify to measure the effect on its features"
        )
