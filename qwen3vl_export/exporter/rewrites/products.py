"""One product in place of several that read the same value. `ir.Model -> ir.Model`.

    MatMul(x, q), MatMul(x, k), MatMul(x, v)   becomes   MatMul(x, rows of q, k and v) ▸ Split

The rows of the weights follow one another in one weight (`checkpoint/names.py` says which, and what it is called), so
every output is the same sum as before. Where a single token is decoded, a call costs more than its arithmetic:
onnxruntime rounds the input, wakes its threads and waits for them.

In float16, for GPUs, products stay apart: onnxruntime's WebGPU provider itself fuses those of one input with the norm
before them and with the activation after them (`MatMulNBitsQkv`, `MatMulNBitsMlp`), and does not look for a Split.

Knows names; nothing about how weights are quantized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import onnx_ir as ir

from ..checkpoint.names import fused_name, members_of
from ..weights.inputs import (
    TRANSPOSE_MATRIX,
    Source,
    drop_unused,
    fold_transforms,
    remove,
    shape_of,
    source_of,
    weight_input,
    weight_inputs,
)
from .rows import integer_constant


def fuse_products(model: ir.Model, storage_of: Callable[[str], object]) -> ir.Model:
    """Fuse the float32 products of every fused weight whose members all read one value and are stored alike.

    Args:
        storage_of: how the weight of a parameter is stored, for comparison.
    """
    model = fold_transforms(model)
    weights = set(weight_inputs(model))
    groups: defaultdict[tuple[str, ir.Value | None], dict[str, ir.Node]] = defaultdict(dict)
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight not in weights or weight.dtype != ir.DataType.FLOAT:
            continue
        source = source_of(weight)
        name = fused_name(source.parameter)
        if name is not None and source.transform == (TRANSPOSE_MATRIX,) and len(weight.uses()) == 1:
            groups[name, node.inputs[0]][source.parameter] = node
    for (name, _), products in groups.items():
        members = members_of(name)
        first, *others = map(storage_of, members)
        if len(products) == len(members) and all(storage == first for storage in others):
            _replace(model, name, [products[member] for member in members], next(iter(products.values())))
    return drop_unused(model)


def _replace(model: ir.Model, name: str, products: list[ir.Node], place: ir.Node) -> None:
    """Replace products, in the order of their rows, by one with the fused weight and a Split of its output.

    Args:
        place: the product that is the first in the graph.
    """
    x, weights = products[0].inputs[0], [weight for node in products if (weight := node.inputs[1]) is not None]
    width, sizes, dtype = shape_of(weights[0])[0], [shape_of(weight)[1] for weight in weights], weights[0].dtype
    assert x is not None and dtype is not None
    fused = weight_input(model, Source(name, (TRANSPOSE_MATRIX,)), dtype, (width, sum(sizes)))
    product = ir.node("MatMul", [x, fused])
    rows = integer_constant(model, *sizes)
    split = ir.node("Split", [product.outputs[0], rows], {"axis": -1}, num_outputs=len(products))
    model.graph.insert_before(place, [product, split])
    for node, new in zip(products, split.outputs, strict=True):
        old = node.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        remove(node)
