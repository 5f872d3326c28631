"""Weight inputs: where the bytes of each weight of a skeleton come from, and how they are transformed on their way to
disk.

A weight input carries its `Source`. `fold_transforms` moves the Transpose and Reshape nodes that read weights into it,
so that the graph rearranges no weight at run time; `quantize/` adds a packing. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .factors import Factors
from .packing import Packing

TransformStep = tuple[str, tuple[int, ...]]  # an operator, and its permutation or shape
WeightTransform = tuple[TransformStep, ...]  # e.g. (("Reshape", (96, 1536)), ("Transpose", (1, 0)))
TRANSPOSE_MATRIX: TransformStep = ("Transpose", (1, 0))  # of a linear layer's weight [N, K] for MatMul
TRANSPOSE_STACK: TransformStep = ("Transpose", (0, 2, 1))  # of each matrix of a stack [E, N, K]
SOURCE = "source"
WEIGHTS = "weights/"  # a skeleton's weights are inputs of this name and their parameter's


@dataclass(frozen=True)
class Source:
    """Where the bytes of one weight come from.

    Attributes:
        parameter: the submodule's parameter, e.g. `visual.pos_embed.weight`.
        transform: the steps applied to it, in order.
        packing: how its values are quantized (`weights/packing.py`), or None if they are only cast.
        part: which array of the packing this weight is; "" without one.
        factors: what the checkpoint's tensor is multiplied with before all else, or None.
    """

    parameter: str
    transform: WeightTransform = ()
    packing: Packing | None = None
    part: str = ""
    factors: Factors | None = None

    @property
    def name(self) -> str:
        """The initializer's name: the parameter's, and the part's if there is one."""
        return f"{self.parameter}.{self.part}" if self.part else self.parameter

    @property
    def is_transposed(self) -> bool:
        """Whether the rows of the checkpoint's tensor are the columns of the stored array."""
        if self.packing is None:
            return self.transform == (TRANSPOSE_MATRIX,)
        return self.part in self.packing.transposed_parts

    @property
    def read_transform(self) -> WeightTransform:
        """The steps that are applied to rows as they are read; those that become columns are not transposed again."""
        return () if self.packing is None and self.is_transposed else self.transform


def weight_inputs(model: ir.Model) -> list[ir.Value]:
    """The lifted weights of a skeleton."""
    return [value for value in model.graph.inputs if value.name is not None and value.name.startswith(WEIGHTS)]


def source_of(weight: ir.Value) -> Source:
    """The source of a weight input; the parameter itself until another is set."""
    assert weight.name is not None
    source: Source = weight.meta.get(SOURCE) or Source(weight.name.removeprefix(WEIGHTS))
    return source


def weight_input(model: ir.Model, source: Source, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """The model's weight input with that source and dtype, added if there is none."""
    for value in weight_inputs(model):
        if source_of(value) == source and value.dtype == dtype:
            return value
    steps = "".join(f".{op.lower()}_{'x'.join(map(str, argument))}" for op, argument in source.transform)
    value = ir.Value(name=f"{WEIGHTS}{source.name}{steps}", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.meta[SOURCE] = source
    model.graph.inputs.append(value)
    return value


def use_factors(model: ir.Model, factors: Mapping[str, Factors]) -> ir.Model:
    """Multiply the weights of a skeleton for whose parameters there are factors."""
    for weight in weight_inputs(model):
        source = source_of(weight)
        weight.meta[SOURCE] = replace(source, factors=factors.get(source.parameter))
    return model


def shape_of(weight: ir.Value) -> tuple[int, ...]:
    """A weight's shape; weights have no symbolic dims."""
    assert weight.shape is not None
    return tuple(int(dim) for dim in weight.shape)  # type: ignore[arg-type]


def fold_transforms(model: ir.Model) -> ir.Model:
    """Replace Transpose and Reshape nodes on weights by weight inputs with that transform."""
    pending = weight_inputs(model)
    while pending:
        weight = pending.pop()
        assert weight.dtype is not None
        for node in {user for user, index in weight.uses() if index == 0}:
            step = _transform_step(node)
            if step is None:
                continue
            source = source_of(weight)
            transformed = replace(source, transform=(*source.transform, step))
            shape = step[1] if step[0] == "Reshape" else tuple(shape_of(weight)[axis] for axis in step[1])
            new = weight_input(model, transformed, weight.dtype, shape)
            pending.append(new)
            node.outputs[0].replace_all_uses_with(new)
            remove(node)
    return drop_unused(model)


def remove(node: ir.Node) -> None:
    """Remove a node whose outputs nothing reads."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def drop_unused(model: ir.Model) -> ir.Model:
    """Remove weight inputs that nothing reads."""
    for weight in weight_inputs(model):
        if not weight.uses():
            model.graph.inputs.remove(weight)
    return model


def _transform_step(node: ir.Node) -> TransformStep | None:
    """The step that a Transpose or a Reshape to a constant shape makes; None for any other node."""
    if node.op_type == "Transpose":
        return "Transpose", tuple(node.attributes["perm"].as_ints())
    if node.op_type == "Reshape":
        shape = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        weight = node.inputs[0]
        if shape is not None and weight is not None:
            dims = tuple(int(n) for n in shape.numpy())
            size = int(np.prod(shape_of(weight)))
            return "Reshape", tuple(np.empty(size, np.bool_).reshape(dims).shape)  # resolves -1
    return None
