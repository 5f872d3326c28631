"""Lowering: placeholder operators to real ones, for each target. `ir.Model -> ir.Model`.

`Guard` becomes a Reshape whose node name is the error message, `GridAttention` is lowered by `lowering/attention.py`,
`Experts` by `lowering/experts.py`. Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..opsets import declare_microsoft
from ..submodules.attention import GRID_ATTENTION
from ..submodules.experts import EXPERTS
from ..submodules.geometry import GUARD, PLACEHOLDER_DOMAIN
from .attention import build_attention_function
from .experts import build_experts_function


def lower(target: str) -> Callable[[ir.Model], ir.Model]:
    """The pass that replaces every placeholder of a skeleton for `target` (`ort` or `portable`)."""

    def replace_placeholders(model: ir.Model) -> ir.Model:
        for node in model.graph:
            if node.domain != PLACEHOLDER_DOMAIN:
                continue
            if node.op_type == GUARD:
                _lower_guard(node)
            elif node.op_identifier() not in model.functions:
                model.functions[node.op_identifier()] = _FUNCTIONS[node.op_type](node, target)
        if model.functions:
            model = passes.InlinePass()(model).model
            model = passes.IdentityEliminationPass()(model).model
        declare_microsoft(model)
        return model

    return replace_placeholders


def _lower_guard(node: ir.Node) -> None:
    """`Guard(x, shape)` to `Reshape(x, shape)`, whose error for differing row counts has the node's name."""
    node.name = f"guard: {node.attributes['message'].as_string()}"
    node.domain, node.op_type, node.version = "", "Reshape", None
    node.attributes.clear()
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 1)


_FUNCTIONS = {GRID_ATTENTION: build_attention_function, EXPERTS: build_experts_function}
