"""Simplification: a traced skeleton to the same graph with fewer nodes. `ir.Model -> ir.Model`.

Constant folding by onnxscript, cleanup by onnx_ir, then onnxsim. Weights are graph inputs at this stage, so nothing can
evaluate or copy one. Placeholder ops pass through untouched. Knows nothing about targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from ..errors import BuildError

# onnxscript folds without its rewrite rules: one of them searches the whole graph again for every node, which takes
# minutes at 48 layers and saves one node in 342 once onnxsim has run.
AFTER_FOLDING = (
    passes.RemoveUnusedNodesPass(),
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.CommonSubexpressionEliminationPass(),
    passes.NameFixPass(),
)

CLEANUP = (
    passes.CommonSubexpressionEliminationPass(),
    passes.RemoveUnusedNodesPass(),
    passes.RemoveUnusedOpsetsPass(),
    passes.DeduplicateInitializersPass(),
    passes.TopologicalSortPass(),
)


def simplify(model: ir.Model) -> ir.Model:
    """Fold, simplify and clean up.

    Raises:
        BuildError: onnxsim changed an input or output.
    """
    before, shapes = _signature(model), [value.shape for value in model.graph.outputs]
    model = passes.InlinePass()(model).model
    optimizer.fold_constants(model, onnx_shape_inference=True)
    model = run_passes(AFTER_FOLDING, model)
    proto, _ = onnxsim.simplify(ir.to_proto(model))
    simplified = clean(ir.from_proto(proto))
    if _signature(simplified) != before:
        raise BuildError(f"{model.graph.name}: onnxsim changed the inputs or outputs", "Check the onnxsim version")
    for value, shape in zip(simplified.graph.outputs, shapes, strict=True):
        value.shape = shape  # where the last node did nothing, the one before it had the tracer's names of dims
    return simplified


def clean(model: ir.Model) -> ir.Model:
    """Run `CLEANUP` once."""
    return run_passes(CLEANUP, model)


def run_passes(sequence: Sequence[ir.passes.PassBase], model: ir.Model) -> ir.Model:
    """Apply passes in order."""
    for graph_pass in sequence:
        model = graph_pass(model).model
    return model


def _signature(model: ir.Model) -> list[tuple[str | None, list[int | None]]]:
    """Names, and shapes as far as they are fixed."""
    return [
        (value.name, [dim if isinstance(dim, int) else None for dim in value.shape or ()])
        for value in (*model.graph.inputs, *model.graph.outputs)
    ]
