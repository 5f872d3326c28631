"""Routed experts with packed weights, [E, 2 * I, H] and [E, H, I]: one operator, or the Loop that restores one expert.

    com.microsoft.MoE   becomes `com.microsoft.QMoE`
    Loop                reads the integers of the expert at hand and restores them by standard operators. `Gather` takes
                        no 4-bit tensors, so two numbers lie in a byte, in the order of `MatMulNBits`.

Both read the same arrays, but for the order of the rows. Which of the two a decoder has, `lowering/experts.py` says.

Legend: E experts, N rows of a matrix, K values of a row, B blocks of a row.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...errors import BuildError
from ...recipe.quantize import Blocks
from ..weights.inputs import Source, shape_of, source_of, weight_input
from ..weights.packing import DATA, SCALES, ZERO_POINTS
from .ops import MICROSOFT, blockwise

TURNED = ("Transpose", (0, 2, 1))  # the Loop multiplies with columns


def one_operator(model: ir.Model, node: ir.Node, plan: Blocks) -> list[ir.Node]:
    """`com.microsoft.QMoE` in the place of a `MoE` whose experts' weights are both packed."""
    x, router, gate_up, down = node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[4]
    assert gate_up is not None and down is not None
    packed = [_packed(model, weight, source_of(weight), shape_of(weight), plan) for weight in (gate_up, down)]
    inputs = [x, router, packed[0][DATA], packed[0][SCALES], None, packed[1][DATA], packed[1][SCALES]]
    if not plan.symmetric:
        inputs += [None, None, None, None, packed[0][ZERO_POINTS], packed[1][ZERO_POINTS]]
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"expert_weight_bits": plan.bits, "block_size": plan.block_size}
    if plan.accuracy_level:  # onnxruntime before 1.31 refuses a QMoE that names one
        attributes |= {"accuracy_level": plan.accuracy_level}
    return [ir.node("QMoE", inputs, attributes, domain=MICROSOFT)]


def is_in_loop(node: ir.Node, weights: set[ir.Value]) -> bool:
    """Whether a node takes one expert's matrix out of a stack of weights."""
    return node.op_type == "Gather" and node.inputs[0] in weights and len(shape_of(node.inputs[0])) == 3


def widened(node: ir.Node) -> ir.Node:
    """The Cast to float32 after a matrix was taken, or the node itself: restored numbers are float32 as they are."""
    users = [user for user, _ in node.outputs[0].uses()]
    is_cast = len(users) == 1 and users[0].op_type == "Cast"
    return users[0] if is_cast else node


def restored(model: ir.Model, node: ir.Node, plan: Blocks) -> list[ir.Node]:
    """One expert's matrix [K, N] in float32, `(number - zero point) * scale`, from the integers of all."""
    weight, expert = node.inputs
    assert weight is not None and expert is not None and weight.dtype is not None
    source, (stack, width, rows) = source_of(weight), shape_of(weight)
    assert source.layout[-1] == TURNED
    parts = _packed(model, weight, Source(source.parameter, source.layout[:-1]), (stack, rows, width), plan)
    made: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        made.append(ir.node(op, inputs, attributes))
        (value,) = made[-1].outputs
        value.name = f"{source.parameter}.restored.{len(made)}"  # names in a body may hide none of the graph around it
        return value

    def taken(part: str) -> ir.Value:
        return add("Gather", parts[part], expert)

    def numbers(part: str, shape: tuple[int, ...], count: int) -> ir.Value:
        """Float32 numbers of a part whose rows hold `count`, maybe one more to fill a byte, in another shape."""
        found = taken(part)
        if plan.bits == 4:
            last = add("Constant", value_ints=[-1])
            low = add("BitwiseAnd", found, add("Constant", value=ir.tensor([0x0F], ir.DataType.UINT8)))
            shift = add("Constant", value=ir.tensor([4], ir.DataType.UINT8))
            high = add("BitShift", found, shift, direction="RIGHT")
            pairs = add("Concat", add("Unsqueeze", low, last), add("Unsqueeze", high, last), axis=-1)
            found = add("Reshape", pairs, add("Constant", value_ints=[rows, -1]))
            if count % 2:
                bounds = [add("Constant", value_ints=[place]) for place in (0, count, 1)]
                found = add("Slice", found, *bounds)
        return add("Cast", add("Reshape", found, add("Constant", value_ints=shape)), to=int(ir.DataType.FLOAT))

    blocks = width // plan.block_size
    values = numbers(DATA, (rows, blocks, plan.block_size), width)
    if plan.symmetric:
        zero = add("Constant", value=ir.tensor([2.0 ** (plan.bits - 1)], ir.DataType.FLOAT))
    else:
        zero = numbers(ZERO_POINTS, (rows, blocks, 1), blocks)
    scales = add("Cast", taken(SCALES), to=int(ir.DataType.FLOAT))
    scaled = add("Mul", add("Sub", values, zero), add("Unsqueeze", scales, add("Constant", value_ints=[-1])))
    add("Transpose", add("Reshape", scaled, add("Constant", value_ints=[rows, width])), perm=[1, 0])
    return made


def _packed(
    model: ir.Model, weight: ir.Value, source: Source, shape: tuple[int, ...], plan: Blocks
) -> dict[str, ir.Value]:
    """The parts of a stack of matrices [E, N, K]: numbers [E, N, K * bits / 8], scales [E, N, B], zero points.

    Raises:
        BuildError: rows that are no whole number of blocks.
    """
    stack, rows, width = shape
    assert weight.dtype is not None
    if width % plan.block_size:
        raise BuildError(
            f"{model.graph.name}: {source.parameter}: rows of {width} values are no multiple of block_size "
            f"{plan.block_size}",
            'Choose a smaller one, or keep: ["*.experts.*"]',
        )
    packing = blockwise(plan, weight.dtype)
    parts = packing.parts(rows, width)
    shapes = {name: (stack, *part.shape) for name, part in parts.items()}
    shapes[DATA] = (stack, rows, width * plan.bits // 8)
    return {
        name: weight_input(model, Source(source.parameter, source.layout, packing, name), part.dtype, shapes[name])
        for name, part in parts.items()
    }
