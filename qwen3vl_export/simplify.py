"""Simplification: a traced skeleton to the same graph with fewer nodes. `ir.Model -> ir.Model`.

Constant folding and cleanup by onnxscript and onnx_ir, then onnxsim. Weights are graph inputs here, so that nothing can
evaluate or copy one. Placeholder ops pass through untouched. Knows nothing about targets.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxsim
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from .errors import BuildError

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
    optimizer.optimize_ir(model)
    proto, _ = onnxsim.simplify(ir.to_proto(model))
    simple = clean(ir.from_proto(proto))
    if _signature(simple) != before:
        raise BuildError(f"{model.graph.name}: onnxsim changed the inputs or outputs", "Check the onnxsim version")
    return simple


def clean(model: ir.Model) -> ir.Model:
    """Run `CLEANUP` once."""
    for one in CLEANUP:
        model = one(model).model
    return model


def _signature(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(value.name, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]
