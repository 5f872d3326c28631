"""Products that read a weight as the checkpoint stores it. `ir.Model -> ir.Model`.

    MatMul(x, transposed weight)   becomes   Reshape ▸ Gemm<transB>(x, weight) ▸ Reshape

`MatMul` needs the rows of a weight as columns; `Gemm` reads them as they are stored. So a weight is written without
transposing it, and an output head that is tied to the token table reads the same bytes as a look-up. onnxruntime packs
the weights of either when it loads them, so neither is faster. Gemm is a standard operator.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ..simplify import clean
from ..weights.inputs import (
    TRANSPOSE_MATRIX,
    drop_unused,
    fold_transforms,
    remove,
    shape_of,
    source_of,
    weight_input,
    weight_inputs,
)

LIKE_FIRST_INPUT = {  # operator -> its outputs that have the leading dims (all but the last) of its first input
    "Cast": (0,),
    "GroupQueryAttention": (0,),
    "MatMulNBits": (0,),
    "RMSNormalization": (0,),
    "Sigmoid": (0,),
    "SkipSimplifiedLayerNormalization": (0, 3),
}
LIKE_ALL_INPUTS = ("Add", "Mul")  # their output has the leading dims that all inputs but scalars share


def use_gemm(model: ir.Model) -> ir.Model:
    """Let every product with a weight that is not quantized read its rows as they are stored."""
    model = fold_transforms(model)
    weights = set(weight_inputs(model))
    like: dict[ir.Value, ir.Value] = {}  # value -> another that provably has the same leading dims
    for node in list(model.graph):
        inputs = [like.get(value, value) for value in node.inputs if value is not None]
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight in weights and source_of(weight).transform[-1:] == (TRANSPOSE_MATRIX,):
            like[_replace_by_gemm(model, node, weight, inputs[0])] = inputs[0]
        elif node.op_type in LIKE_FIRST_INPUT:
            like |= {node.outputs[index]: inputs[0] for index in LIKE_FIRST_INPUT[node.op_type]}
        elif node.op_type == "Split" and node.attributes.get_int("axis", 0) == -1:
            like |= dict.fromkeys(node.outputs, inputs[0])
        elif (
            node.op_type in LIKE_ALL_INPUTS and len(shaped := {value for value in inputs if not _is_scalar(value)}) == 1
        ):
            (like[node.outputs[0]],) = shaped
    return clean(drop_unused(model))  # products of one input share the nodes that compute their shapes


def _replace_by_gemm(model: ir.Model, node: ir.Node, transposed: ir.Value, like: ir.Value) -> ir.Value:
    """Replace a `MatMul` of [..., width] by a `Gemm` with the weight [rows, width]; Gemm takes matrices only.

    Args:
        transposed: the weight that the MatMul reads, [width, rows].
        like: a value with the leading dims of the MatMul's input.

    Returns:
        The value that replaces the MatMul's output.
    """
    x, old, source = node.inputs[0], node.outputs[0], source_of(transposed)
    assert x is not None and transposed.dtype is not None and node.graph is not None
    width, rows = shape_of(transposed)
    weight = weight_input(model, replace(source, transform=source.transform[:-1]), transposed.dtype, (rows, width))
    flat = ir.node("Reshape", [x, integer_constant(model, -1, width)])
    product = ir.node("Gemm", [flat.outputs[0], weight], {"transB": 1}, name=node.name)
    outer = ir.node("Shape", [like], {"start": 0, "end": -1})
    shape = ir.node("Concat", [outer.outputs[0], integer_constant(model, rows)], {"axis": 0})
    result = ir.node("Reshape", [product.outputs[0], shape.outputs[0]])
    node.graph.insert_before(node, [flat, product, outer, shape, result])
    new = result.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.shape, new.type = old.name, old.shape, old.type
    remove(node)
    return new


def _is_scalar(value: ir.Value) -> bool:
    return value.const_value is not None and not value.const_value.shape.dims


def integer_constant(model: ir.Model, *numbers: int) -> ir.Value:
    """The int64 initializer [len(numbers)] of a graph that holds these numbers, added if there is none."""
    name = "shape_" + "x".join(map(str, numbers))
    if name not in model.graph.initializers:
        value = ir.Value(name=name, const_value=ir.tensor(numbers, ir.DataType.INT64, name))
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
