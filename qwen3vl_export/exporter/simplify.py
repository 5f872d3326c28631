"""Simplification: a traced skeleton to the same graph with fewer nodes. `ir.Model -> ir.Model`.

Constant folding by onnxscript, cleanup by onnx_ir, then onnxsim. Weights are graph inputs here, so that nothing can
evaluate or copy one. Placeholder ops pass through untouched. Knows nothing about targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from ..errors import BuildError

# onnxscript folds without its rewrite rules: one of those searches the whole graph again for every node, which takes
# minutes at 48 layers and leaves one node fewer in 342 once onnxsim has run.
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
    before = _signature(model)
    model = passes.InlinePass()(model).model
    optimizer.fold_constants(model, onnx_shape_inference=True)
    model = run(AFTER_FOLDING, model)
    proto, _ = onnxsim.simplify(ir.to_proto(model))
    simple = clean(ir.from_proto(proto))
    if _signature(simple) != before:
        raise BuildError(f"{model.graph.name}: onnxsim changed the inputs or outputs", "Check the onnxsim version")
    return simple


def clean(model: ir.Model) -> ir.Model:
    """Run `CLEANUP` once."""
    return run(CLEANUP, model)


def run(steps: Sequence[ir.passes.PassBase], model: ir.Model) -> ir.Model:
    """Apply passes in order."""
    for step in steps:
        model = step(model).model
    return model


def _signature(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(value.name, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]
