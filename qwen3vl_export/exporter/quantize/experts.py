"""Routed experts with packed weights, [E, 2 * I, H] and [E, H, I]: one operator, or a Loop that dequantizes one expert.

    com.microsoft.MoE   becomes `com.microsoft.QMoE`
    Loop                reads the integers of the current expert and restores them (`quantize/restore.py`)

Both read the same arrays, but for the order of the rows. `lowering/experts.py` decides which of the two a decoder has.

Legend: E experts, N rows of a matrix, K values of a row, B blocks of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from ...errors import BuildError
from ...recipe.quantize import BlockSettings
from ..opsets import MICROSOFT
from ..weights.inputs import TRANSPOSE_STACK, Source, shape_of, source_of, weight_input
from ..weights.packing import DATA, SCALES, ZERO_POINTS
from .ops import blockwise_packing
from .restore import restore_rows

ROUTER = "*.mlp.gate.weight"  # never quantized: it is small, and rounding it routes tokens to other experts


def build_qmoe(model: ir.Model, node: ir.Node, settings: BlockSettings) -> list[ir.Node]:
    """`com.microsoft.QMoE` for a `MoE` whose experts' weights are both quantized.

    Raises:
        BuildError: rows that are no whole number of blocks.
    """
    x, router, gate_up, down = node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[4]
    assert gate_up is not None and down is not None
    packed = [_part_inputs(model, weight, source_of(weight), shape_of(weight), settings) for weight in (gate_up, down)]
    inputs = [x, router, packed[0][DATA], packed[0][SCALES], None, packed[1][DATA], packed[1][SCALES]]
    if not settings.symmetric:
        inputs += [None, None, None, None, packed[0][ZERO_POINTS], packed[1][ZERO_POINTS]]
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"expert_weight_bits": settings.bits, "block_size": settings.block_size}
    if gate_up.dtype == ir.DataType.FLOAT16:  # or CUDA's kernel takes the integers for those of an order of its own
        attributes |= {"weights_prepacked": 0}
    if settings.accuracy_level:  # onnxruntime before 1.31 refuses a QMoE that has one
        attributes |= {"accuracy_level": settings.accuracy_level}
    return [ir.node("QMoE", inputs, attributes, domain=MICROSOFT)]


def selects_expert(node: ir.Node, weights: set[ir.Value]) -> bool:
    """Whether a node gathers one expert's matrix from a stack of weights."""
    return node.op_type == "Gather" and node.inputs[0] in weights and len(shape_of(node.inputs[0])) == 3


def widening_cast(node: ir.Node) -> ir.Node | None:
    """The Cast to float32 of a gathered matrix, if there is one; dequantized numbers are float32 and need none."""
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == "Cast" else None


def dequantize_expert(model: ir.Model, node: ir.Node, settings: BlockSettings) -> list[ir.Node]:
    """Nodes that compute one expert's matrix [K, N] in float32, `(integer - zero point) * scale`.

    Args:
        node: the Gather of that matrix.

    Raises:
        BuildError: rows that are no whole number of blocks.
    """
    weight, expert = node.inputs
    assert weight is not None and expert is not None and weight.dtype is not None
    source, (stack, width, rows) = source_of(weight), shape_of(weight)
    assert source.transform[-1] == TRANSPOSE_STACK  # the Loop multiplies with columns
    stored = replace(source, transform=source.transform[:-1])
    parts = _part_inputs(model, weight, stored, (stack, rows, width), settings)
    nodes = restore_rows(source.parameter, parts, expert, settings, (rows,), width // settings.block_size)
    columns = ir.node("Transpose", nodes[-1].outputs, {"perm": [1, 0]})
    columns.outputs[0].name = f"{source.parameter}.restored"
    return [*nodes, columns]


def _part_inputs(
    model: ir.Model, weight: ir.Value, source: Source, shape: tuple[int, ...], settings: BlockSettings
) -> dict[str, ir.Value]:
    """The parts of a stack of matrices [E, N, K]: integers [E, N, K * bits / 8], scales [E, N, B], zero points.

    Raises:
        BuildError: rows that are no whole number of blocks.
    """
    stack, rows, width = shape
    assert weight.dtype is not None
    if width % settings.block_size:
        raise BuildError(
            f"{model.graph.name}: {source.parameter}: rows of {width} values are no multiple of block_size "
            f"{settings.block_size}",
            'Choose a smaller block_size, or keep: ["*.experts.*"]',
        )
    packing = blockwise_packing(settings, weight.dtype)
    parts = packing.parts(rows, width)
    shapes = {name: (stack, *part.shape) for name, part in parts.items()}
    shapes[DATA] = (stack, rows, width * settings.bits // 8)
    return {
        name: weight_input(model, replace(source, packing=packing, part=name), part.dtype, shapes[name])
        for name, part in parts.items()
    }
