"""A tied output head that reads the token table as it lies. `ir.Model -> ir.Model`.

    MatMul(x, transposed table)   becomes   Reshape ▸ Gemm<transB>(x, table) ▸ Reshape

`MatMul` wants the table turned, bytes of its own; `Gemm` reads its rows, which are those a look-up reads. onnxruntime
packs either for its processor when it loads them, so neither is faster. Gemm is a standard operator.
"""

from __future__ import annotations

import onnx_ir as ir

from ..trace import weight_inputs
from ..weights.layouts import Source, drop_unused, fold_layouts, shape_of, source_of, weight_input

HEAD = "lm_head.weight"
TURNED = ("Transpose", (1, 0))


def read_table(model: ir.Model) -> ir.Model:
    """Let the output head, unless it is quantized, read its weight row by row."""
    model = fold_layouts(model)
    for weight in weight_inputs(model):
        source = source_of(weight)
        if source.parameter != HEAD or source.packing is not None or source.layout != (TURNED,):
            continue
        assert weight.dtype is not None
        width, rows = shape_of(weight)
        table = weight_input(model, Source(HEAD), weight.dtype, (rows, width))
        for node in [user for user, index in weight.uses() if user.op_type == "MatMul" and index == 1]:
            _replace(node, table, rows, width)
    return drop_unused(model)


def _replace(node: ir.Node, table: ir.Value, rows: int, width: int) -> None:
    """`MatMul` of [batch, n, width] by `Gemm` with `table` [rows, width]."""
    graph, hidden, logits = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(graph, ir.Graph)
    constants = [
        ir.Value(name=f"logits.{name}", const_value=ir.tensor(value, ir.DataType.INT64, f"logits.{name}"))
        for name, value in (("flat", [-1, width]), ("rows", [rows]))
    ]
    for constant in constants:
        graph.register_initializer(constant)
    flat = ir.node("Reshape", [hidden, constants[0]])
    product = ir.node("Gemm", [flat.outputs[0], table], {"transB": 1})
    outer = ir.node("Shape", [hidden], {"start": 0, "end": 2})
    shape = ir.node("Concat", [outer.outputs[0], constants[1]], {"axis": 0})
    result = ir.node("Reshape", [product.outputs[0], shape.outputs[0]])
    graph.insert_before(node, [flat, product, outer, shape, result])
    new = result.outputs[0]
    logits.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.shape, new.type = logits.name, logits.shape, logits.type
    graph.remove(node, safe=True)
