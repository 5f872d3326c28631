"""The operator set of onnxruntime's own operators, and its declaration in a model.

Knows node domains; nothing about what operators compute.
"""

from __future__ import annotations

import onnx_ir as ir

MICROSOFT = "com.microsoft"


def declare_microsoft(model: ir.Model) -> None:
    """Import the operator set in a model with a node that needs it."""
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports[MICROSOFT] = 1
