"""Arithmetic on positions in float64, which WebGPU does not have. `ir.Model -> ir.Model`.

    Mul (positions, frequencies)   becomes   Cast<float32> (Mul (Cast<float64> positions, Cast<float64> frequencies))
    Cos (angles)                   becomes   Cast<float32> (Sin (Cast<float64> angles + pi / 2))

Positions, angles and taps follow from a few integers that every runtime holds on CPU: the grid, the mask, position ids,
numbers of rows. A provider takes each node it has a kernel for, so float32 arithmetic on them would run on the GPU,
between integers on CPU that wait for it. In float64 all of it stays where the integers are, in any runtime, and its
results are copied once. Cosines and sines in float32 would besides depend on the GPU: WebGPU promises an error of 2^-11
between -pi and pi, and nothing beyond (https://www.w3.org/TR/WGSL/#floating-point-accuracy).

Nothing changes but for the last digit of sines and cosines: each result is rounded to float32 where the operator would
have rounded it, and rounding sums, products and quotients of float32 numbers twice is exact (Figueroa, When is double
rounding innocuous?, 1995). onnxruntime has Sin in float64, and no Cos.

Knows dtypes as the tracer left them; nothing about weights, which only ever meet activations.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

ROUNDS = ("Add", "Cos", "Div", "Exp", "Mul", "Pow", "Reciprocal", "Sin", "Sqrt", "Sub")
KEEPS = (  # their results are among their inputs, or whole numbers
    *("Abs", "Ceil", "Clip", "Concat", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max", "Min", "Neg"),
    *("ReduceMax", "ReduceMin", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)
TESTS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
KNOWN = {"Cast", *ROUNDS, *KEEPS, *TESTS}
FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE
QUARTER_TURN = "quarter_turn"


def compute_on_host(model: ir.Model) -> ir.Model:
    """Compute in float64 what depends on integer inputs and constants alone, and is float32."""
    return _HostArithmetic(model).rewrite()


class _HostArithmetic:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.host = {value for value in model.graph.inputs if value.dtype == ir.DataType.INT64}
        self.exact: dict[ir.Value, ir.Value] = {}  # float32 value -> the same in float64

    def rewrite(self) -> ir.Model:
        for node in list(self.model.graph):
            if node.op_type == "Shape" or all(self._is_on_host(value) for value in node.inputs):
                self._visit(node)
        return self.model

    def _is_on_host(self, value: ir.Value | None) -> bool:
        return value is None or value in self.host or value.const_value is not None

    def _visit(self, node: ir.Node) -> None:
        inputs, outputs = [
            [value.dtype for value in values if value is not None] for values in (node.inputs, node.outputs)
        ]
        if node.op_type == "Shape" or FLOAT not in inputs:  # a Cast of integers is computed where they are
            self.host.update(node.outputs)
        elif node.domain == "" and node.op_type in KNOWN and ir.DataType.FLOAT16 not in outputs:
            self._replace(node)

    def _replace(self, node: ir.Node) -> None:
        """Replace a node by its float64 form; what reads its float32 outputs reads them rounded."""
        inputs = [
            self._widen(value, node) if value is not None and value.dtype == FLOAT else value for value in node.inputs
        ]
        op_type = node.op_type
        if op_type == "Cos":
            op_type, inputs = "Sin", [self._insert(node, "Add", [inputs[0], self._quarter_turn()])]
        new = ir.node(op_type, inputs, dict(node.attributes), num_outputs=len(node.outputs), name=node.name)
        self.model.graph.insert_before(node, new)
        for old, result in zip(node.outputs, new.outputs, strict=True):
            if old.dtype == FLOAT:
                result.dtype, result.shape = DOUBLE, old.shape
                exact, result = result, self._insert(node, "Cast", [result], {"to": FLOAT})
                if node.op_type not in ROUNDS:
                    self.exact[result] = exact
            result.name, result.shape, result.type = old.name, old.shape, old.type
            self.host.add(result)
            old.replace_all_uses_with(result, replace_graph_outputs=True)
        self.model.graph.remove(node, safe=True)

    def _widen(self, value: ir.Value, user: ir.Node) -> ir.Value:
        """A float32 value in float64."""
        if value not in self.exact:
            self.exact[value] = self._insert(user, "Cast", [value], {"to": DOUBLE})
            self.exact[value].dtype = DOUBLE
        return self.exact[value]

    def _insert(
        self, before: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, int] | None = None
    ) -> ir.Value:
        """The result of a new node."""
        node = ir.node(op_type, inputs, attributes)
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def _quarter_turn(self) -> ir.Value:
        initializers = self.model.graph.initializers
        if QUARTER_TURN not in initializers:
            tensor = ir.tensor(np.array(math.pi / 2), DOUBLE, QUARTER_TURN)
            self.model.graph.register_initializer(ir.Value(name=QUARTER_TURN, const_value=tensor))
        return initializers[QUARTER_TURN]
