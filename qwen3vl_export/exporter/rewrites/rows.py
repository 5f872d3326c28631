"""Products that read a weight as the checkpoint stores it. `ir.Model -> ir.Model`.

    MatMul(x, turned weight)   becomes   Reshape ▸ Gemm<transB>(x, weight) ▸ Reshape

`MatMul` wants the rows of a weight as columns; `Gemm` reads them as they lie. So a weight is written without turning
it, and an output head that is tied to the token table reads the very rows that a look-up reads. onnxruntime packs
either for its processor when it loads them, so neither is faster. Gemm is a standard operator.
"""

from __future__ import annotations

import onnx_ir as ir

from ..simplify import clean
from ..weights.inputs import (
    TURNED,
    Source,
    drop_unused,
    fold_layouts,
    remove,
    shape_of,
    source_of,
    weight_input,
    weight_inputs,
)

LIKE_FIRST_INPUT = {  # operator -> its outputs that have the dims of its first input, the last one aside
    "Cast": (0,),
    "GroupQueryAttention": (0,),
    "MatMulNBits": (0,),
    "RMSNormalization": (0,),
    "Sigmoid": (0,),
    "SkipSimplifiedLayerNormalization": (0, 3),
}
LIKE_ALL_INPUTS = ("Add", "Mul")  # their output has the dims that all inputs have


def read_rows(model: ir.Model) -> ir.Model:
    """Let every product with a weight that is not quantized read it row by row."""
    model = fold_layouts(model)
    weights = set(weight_inputs(model))
    like: dict[ir.Value, ir.Value] = {}  # value -> another that surely has its dims, the last one aside
    for node in list(model.graph):
        inputs = [like.get(value, value) for value in node.inputs if value is not None]
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight in weights and source_of(weight).layout[-1:] == (TURNED,):
            like[_read_rows(model, node, weight, inputs[0])] = inputs[0]
        elif node.op_type in LIKE_FIRST_INPUT:
            like |= {node.outputs[index]: inputs[0] for index in LIKE_FIRST_INPUT[node.op_type]}
        elif node.op_type in LIKE_ALL_INPUTS and len({*inputs}) == 1:
            like[node.outputs[0]] = inputs[0]
    return clean(drop_unused(model))  # products of one input share what stands around them


def _read_rows(model: ir.Model, node: ir.Node, turned: ir.Value, like: ir.Value) -> ir.Value:
    """`MatMul` of [..., width] by `Gemm` with the rows of its weight, [rows, width]; Gemm takes matrices only.

    Args:
        like: a value with the dims of the MatMul's input, the last one aside.

    Returns:
        What stands for the MatMul's output.
    """
    x, old, source = node.inputs[0], node.outputs[0], source_of(turned)
    assert x is not None and turned.dtype is not None and node.graph is not None
    width, rows = shape_of(turned)
    weight = weight_input(model, Source(source.parameter, source.layout[:-1]), turned.dtype, (rows, width))
    flat = ir.node("Reshape", [x, _constant(model, -1, width)])
    product = ir.node("Gemm", [flat.outputs[0], weight], {"transB": 1}, name=node.name)
    outer = ir.node("Shape", [like], {"start": 0, "end": -1})
    shape = ir.node("Concat", [outer.outputs[0], _constant(model, rows)], {"axis": 0})
    result = ir.node("Reshape", [product.outputs[0], shape.outputs[0]])
    node.graph.insert_before(node, [flat, product, outer, shape, result])
    new = result.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.shape, new.type = old.name, old.shape, old.type
    remove(node)
    return new


def _constant(model: ir.Model, *numbers: int) -> ir.Value:
    name = "shape_" + "x".join(map(str, numbers))
    if name not in model.graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(numbers, ir.DataType.INT64, name))
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
