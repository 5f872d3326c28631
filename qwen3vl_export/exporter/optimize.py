"""Optimization: the one visible list of rewrites per target. `ir.Model -> ir.Model`.

A rewrite is a function of one model; adding one is adding a line to `PASSES`. Runs on skeletons, after `simplify`.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .lowering import lower
from .opsets import lower_opset
from .rewrites.layout import drop_identity_reshapes, rotate_in_place
from .rewrites.norms import fuse_skip_norms
from .rewrites.rotary import fuse_rotations
from .simplify import clean

Rewrite = Callable[[ir.Model], ir.Model]


def forget_tracing(model: ir.Model) -> ir.Model:
    """Drop the tracer's metadata and the shapes it inferred inside the graph; inputs and outputs keep theirs."""
    model = passes.ClearMetadataAndDocStringPass()(model).model
    outputs = set(model.graph.outputs)
    for node in model.graph:
        node.doc_string = None
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
                value.type = None
    model.producer_name, model.producer_version = "qwen3vl_export", None
    model.doc_string = None
    return model


PASSES: dict[str, tuple[Rewrite, ...]] = {
    # The rewrites rely on the tracer's shapes, so they run before these are dropped.
    "ort": (
        lower("ort"),
        fuse_rotations,
        rotate_in_place,
        drop_identity_reshapes,
        fuse_skip_norms,
        clean,
        lower_opset,
        forget_tracing,
    ),
    "portable": (lower("portable"), drop_identity_reshapes, clean, forget_tracing),
}


def optimize(
    model: ir.Model, target: str, keep_step: Callable[[str, ir.Model], None] = lambda name, model: None
) -> ir.Model:
    """Apply the target's rewrites in order.

    Args:
        keep_step: called after each rewrite with its number and name (`4-fuse_skip_norms`) and its result.
    """
    for number, rewrite in enumerate(PASSES[target], start=1):
        model = rewrite(model)
        keep_step(f"{number}-{rewrite.__qualname__.partition('.')[0]}", model)
    return model
