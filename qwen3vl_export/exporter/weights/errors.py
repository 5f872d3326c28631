"""What quantization did to the weights: measured while they were written, told to the user, kept in the manifest.

An error is relative: the L2 norm of what changed over the norm of the weight. What a network makes of it is `verify`'s
to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...contract import VISION_ENCODER


def weight_errors(errors: Mapping[str, float]) -> dict[str, Any]:
    """Number of tensors, mean and worst of their errors, the worst tensor's name, each by name; there must be one."""
    worst = max(errors, key=lambda parameter: errors[parameter])
    return {
        "tensors": len(errors),
        "mean": round(sum(errors.values()) / len(errors), 5),
        "worst": round(errors[worst], 5),
        "worst_tensor": worst,
        "by_tensor": {parameter: round(error, 5) for parameter, error in errors.items()},
    }


def tell_errors(graph: str, method: str, errors: Mapping[str, float], log: Callable[[str], None]) -> None:
    """Print what quantization cost each tensor and the graph, and a warning where it is known to cost too much."""
    if method == "none" or not errors:
        return
    found = weight_errors(errors)
    for parameter, error in errors.items():
        log(f"{error:8.2%} off: {parameter}")
    log(
        f"{graph:24} {found['tensors']} weights in {method}: relative error {found['mean']:.3g} in the mean, "
        f"{found['worst']:.3g} at most ({found['worst_tensor']})"
    )
    if method == "int4" and graph.startswith(VISION_ENCODER):
        log(
            f"warning: {graph}: 4-bit weights are off by {found['mean']:.1%} and a tower adds that up over its layers; "
            "see what becomes of the features: verify"
        )
