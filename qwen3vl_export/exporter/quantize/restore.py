"""Rows of packed integers to floats, in standard operators: what a look-up or a Loop gathers of a quantized weight.

onnxruntime's operator for such look-ups, `GatherBlockQuantized`, is missing where browsers compute on the CPU. `Gather`
takes no 4-bit tensors, so a byte holds two integers, in the order of `MatMulNBits`. The result is
(integer - zero point) * scale, in float32.

Knows operators; nothing about which weights are gathered, or why.

Legend: B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from ...recipe.quantize import BlockSettings
from ..weights.packing import DATA, SCALES, ZERO_POINTS


def restore_rows(
    name: str,
    parts: Mapping[str, ir.Value],
    indices: ir.Value,
    settings: BlockSettings,
    lead: tuple[int, ...],
    blocks: int,
) -> list[ir.Node]:
    """Nodes that gather rows of every part along its first axis and restore them: [*lead, B * block_size] in float32.

    Args:
        name: of the weight; the values that are computed are named after it.
        parts: a packing's, with integers [..., B * block_size * bits / 8], scales [..., B] and maybe zero points.
        lead: axes of the gathered parts before the last; 0 is an axis as long as it happens to be.
        blocks: B.
    """
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes))
        (value,) = nodes[-1].outputs
        value.name = f"{name}.restored.{len(nodes)}"  # names in a body must not shadow the outer graph's
        return value

    def select(part: str) -> ir.Value:
        return add("Gather", parts[part], indices)

    def unpack(part: str, shape: tuple[int, ...], count: int) -> ir.Value:
        """The integers of a part as float32 in another shape; rows hold `count`, and one more where a byte is half
        used."""
        integers = select(part)
        if settings.bits == 4:
            last = add("Constant", value_ints=[-1])
            low = add("BitwiseAnd", integers, add("Constant", value=ir.tensor([0x0F], ir.DataType.UINT8)))
            shift = add("Constant", value=ir.tensor([4], ir.DataType.UINT8))
            high = add("BitShift", integers, shift, direction="RIGHT")
            pairs = add("Concat", add("Unsqueeze", low, last), add("Unsqueeze", high, last), axis=-1)
            integers = add("Reshape", pairs, add("Constant", value_ints=[*lead, -1]))
            if count % 2:
                bounds = [add("Constant", value_ints=[bound]) for bound in (0, count)]
                integers = add("Slice", integers, *bounds, last)
        return add("Cast", add("Reshape", integers, add("Constant", value_ints=shape)), to=int(ir.DataType.FLOAT))

    width = blocks * settings.block_size
    values = unpack(DATA, (*lead, blocks, settings.block_size), width)
    if settings.symmetric:
        zero = add("Constant", value=ir.tensor([2.0 ** (settings.bits - 1)], ir.DataType.FLOAT))
    else:
        zero = unpack(ZERO_POINTS, (*lead, blocks, 1), blocks)
    scales = add("Cast", select(SCALES), to=int(ir.DataType.FLOAT))
    scaled = add("Mul", add("Sub", values, zero), add("Unsqueeze", scales, add("Constant", value_ints=[-1])))
    add("Reshape", scaled, add("Constant", value_ints=[*lead, width]))
    return nodes
