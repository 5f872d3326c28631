"""Layouts: where the bytes of each weight of a skeleton come from, and how they are turned on their way to disk.

A weight input carries its `Source`. `fold_layouts` moves the Transpose and Reshape nodes that stand on weights into it,
so that the graph never moves a weight at run time; `quantize/` adds a packing. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .packing import Packing

Step = tuple[str, tuple[int, ...]]
Layout = tuple[Step, ...]  # e.g. (("Reshape", (96, 1536)), ("Transpose", (1, 0)))
TURNED: Step = ("Transpose", (1, 0))  # rows to columns, as MatMul wants a linear layer's weight
SOURCE = "source"
WEIGHTS = "weights/"  # a skeleton's weights are inputs of this name and their parameter's


@dataclass(frozen=True)
class Source:
    """Where the bytes of one weight come from.

    Attributes:
        parameter: the submodule's parameter, e.g. `visual.pos_embed.weight`.
        layout: what is done to it, in order.
        packing: how its values are quantized (`weights/packing.py`), or None if they are only cast.
        part: which of the packing's arrays this weight is; "" without one.
    """

    parameter: str
    layout: Layout = ()
    packing: Packing | None = None
    part: str = ""

    @property
    def name(self) -> str:
        """The initializer's name: the parameter's, and the part of it that this is."""
        return f"{self.parameter}.{self.part}" if self.part else self.parameter


def weight_inputs(model: ir.Model) -> list[ir.Value]:
    """The lifted weights of a skeleton."""
    return [value for value in model.graph.inputs if value.name is not None and value.name.startswith(WEIGHTS)]


def source_of(weight: ir.Value) -> Source:
    """The source of a weight input; before any step it is the parameter itself."""
    assert weight.name is not None
    found: Source = weight.meta.get(SOURCE) or Source(weight.name.removeprefix(WEIGHTS))
    return found


def weight_input(model: ir.Model, source: Source, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """The weight input of that source, added to the model unless it has it."""
    for value in weight_inputs(model):
        if source_of(value) == source and value.dtype == dtype:
            return value
    turns = "".join(f".{op.lower()}_{'x'.join(map(str, argument))}" for op, argument in source.layout)
    value = ir.Value(name=f"{WEIGHTS}{source.name}{turns}", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.meta[SOURCE] = source
    model.graph.inputs.append(value)
    return value


def shape_of(weight: ir.Value) -> tuple[int, ...]:
    """A weight's shape; weights have no symbolic dims."""
    assert weight.shape is not None
    return tuple(int(dim) for dim in weight.shape)  # type: ignore[arg-type]


def fold_layouts(model: ir.Model) -> ir.Model:
    """Replace Transpose and Reshape nodes on weights by weight inputs of the new layout."""
    pending = weight_inputs(model)
    while pending:
        weight = pending.pop()
        assert weight.dtype is not None
        for node in {user for user, index in weight.uses() if index == 0}:
            step = _layout_step(node)
            if step is None:
                continue
            source = source_of(weight)
            turned = Source(source.parameter, (*source.layout, step))
            shape = step[1] if step[0] == "Reshape" else tuple(shape_of(weight)[axis] for axis in step[1])
            new = weight_input(model, turned, weight.dtype, shape)
            pending.append(new)
            node.outputs[0].replace_all_uses_with(new)
            remove(node)
    return drop_unused(model)


def remove(node: ir.Node) -> None:
    """Take a node that nothing reads out of its graph."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def drop_unused(model: ir.Model) -> ir.Model:
    """Remove weight inputs that nothing reads."""
    for weight in weight_inputs(model):
        if not weight.uses():
            model.graph.inputs.remove(weight)
    return model


def _layout_step(node: ir.Node) -> Step | None:
    """The layout change a node makes, or None if it is another kind of node."""
    if node.op_type == "Transpose":
        return "Transpose", tuple(node.attributes["perm"].as_ints())
    if node.op_type == "Reshape":
        shape = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        source = node.inputs[0]
        if shape is not None and source is not None:
            rows = tuple(int(n) for n in shape.numpy())
            total = int(np.prod(shape_of(source)))
            return "Reshape", tuple(np.empty(total, np.bool_).reshape(rows).shape)  # resolves -1
    return None
