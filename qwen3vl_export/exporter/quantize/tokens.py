"""A scale for each token in a product that rounds activations with one scale a call.

    x ▸ Div by the largest of each row ▸ product ▸ Mul by the largest of each row ▸ Add bias

Every row that the product sees reaches 1 or -1 and nothing lies outside, so that its scale fits all of them and a token
with large activations no longer blurs the others. Standard operators around either target's product. Knows nothing
about how that rounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from .ops import NodeBuilder, WeightReader


def scale_tokens(build: NodeBuilder) -> NodeBuilder:
    """A builder of the same product that does so where its settings say `activations: per_token`."""

    def build_scaled(model: ir.Model, product: WeightReader, settings: Any) -> list[ir.Node]:
        if settings.activations == "per_tensor":
            return build(model, product, settings)
        nodes: list[ir.Node] = []

        def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            nodes.append(ir.node(op, inputs, attributes))
            return nodes[-1].outputs[0]

        axis = add("Constant", value_ints=[-1])
        smallest = add("Constant", value=ir.tensor(np.finfo(product.dtype.numpy()).tiny))  # for rows of zeros
        highest, lowest = (add(op, product.x, axis, keepdims=1) for op in ("ReduceMax", "ReduceMin"))
        largest = add("Max", highest, add("Neg", lowest), smallest)  # Abs would write as much as it reads
        x = add("Div", product.x, largest)
        nodes += build(model, replace(product, x=x, bias=None), settings)
        result = add("Mul", nodes[-1].outputs[0], largest)
        if product.bias is not None:
            add("Add", result, product.bias)
        return nodes

    return build_scaled
