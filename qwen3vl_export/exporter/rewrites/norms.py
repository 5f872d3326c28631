"""Residual sum and RMS norm in one operator. `ir.Model -> ir.Model`.

    Add(x, residual) ▸ RMSNormalization   becomes   SkipSimplifiedLayerNormalization, which also outputs the sum

One pass over the rows instead of two, for onnxruntime only (`com.microsoft`, CPU kernels in float32 and float16). Knows
shapes as the tracer left them; nothing about weights.
"""

from __future__ import annotations

import onnx_ir as ir

from ..opsets import MICROSOFT, declare_microsoft


def fuse_skip_norms(model: ir.Model) -> ir.Model:
    """Fuse every sum of two values of the same shape with the norm over the last axis that reads it."""
    for norm in list(model.graph):
        if norm.op_type != "RMSNormalization" or norm.domain or norm.attributes.get_int("axis", -1) != -1:
            continue
        total = norm.inputs[0]
        add = total.producer() if total is not None else None
        if total is None or add is None or add.op_type != "Add" or total.is_graph_output():
            continue
        left, right = add.inputs
        if left is None or right is None or not have_same_shape(left, right):
            continue
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            [left, right, norm.inputs[1]],
            attributes={"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
            domain=MICROSOFT,
            num_outputs=4,
        )
        for unused in fused.outputs[1:3]:
            unused.name = ""
        for old, new in ((norm.outputs[0], fused.outputs[0]), (total, fused.outputs[3])):
            new.name, new.shape, new.type = old.name, old.shape, old.type
            old.replace_all_uses_with(new)
        model.graph.insert_before(add, fused)
        model.graph.remove([norm, add], safe=True)
    declare_microsoft(model)
    return model


def have_same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values provably have the same shape: every dim is known, by number or by name."""
    if left.shape is None or right.shape is None or left.shape != right.shape:
        return False
    return all(isinstance(dim, int) or dim.value is not None for dim in left.shape)
