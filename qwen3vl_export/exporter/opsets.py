"""The operator sets that a model declares.

Knows node domains and operators' names; nothing about what operators compute.
"""

from __future__ import annotations

import onnx_ir as ir

MICROSOFT = "com.microsoft"
BRANCHING = 22  # the operator set of graphs with an If


def declare_microsoft(model: ir.Model) -> None:
    """Import the operator set in a model with a node that needs it."""
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports[MICROSOFT] = 1


def lower_opset(model: ir.Model) -> ir.Model:
    """Let a model that branches declare the newest operator set whose If runs on every provider.

    onnxruntime's WebGPU provider has If up to that of opsets 21 and 22 (seen in 1.27): a newer one runs on CPU, and the
    GPU waits for two copies at each. It has Cos and Sin up to opset 21: those of 22 stay on CPU, for WebGPU promises
    little of them (https://www.w3.org/TR/WGSL/#floating-point-accuracy), and features would be off by a thousandth. The
    other operators of a tower mean the same in both sets.
    """
    if any(node.op_type == "If" for node in model.graph):
        model.graph.opset_imports[""] = BRANCHING
    return model
