"""Rotations written out by transformers to the standard operator. `ir.Model -> ir.Model`.

    x * cos + concat(-x[half:], x[:half]) * sin   becomes   RotaryEmbedding (x, cos[:half], sin[:half])

The tracer does so in float32 alone: in float16 a Cast of the tables hides the pattern from it, and each rotation takes
seven operators, each of which a GPU starts by itself. Both halves of a table must be the same values. Knows nothing
about weights.

Legend: B batch, N heads, S tokens, E size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

ELEMENTWISE = ("Cast", "Cos", "Mul", "Sin")  # what a table is computed by; a Mul by a scalar


def fuse_rotations(model: ir.Model) -> ir.Model:
    """Fuse every rotation of [B, N, S, E] by tables [B, 1, S, E] whose two halves are equal."""
    halves: dict[ir.Value | None, ir.Value] = {}
    for total in list(model.graph):
        factors = [_inputs_of(value, "Mul") for value in _inputs_of(total.outputs[0], "Add")]
        if len(factors) != 2 or not all(factors):
            continue
        for (x, cos), (turned, sin) in (factors, factors[::-1]):
            tables = [_half_of(table, halves) for table in (_before_heads(cos), _before_heads(sin))]
            if not _is_turned(turned, x) or None in tables:
                continue
            rotated = ir.node("RotaryEmbedding", [x, *tables])
            model.graph.insert_before(total, rotated)
            new, old = rotated.outputs[0], total.outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(total, safe=True)
            break
    return model


def _inputs_of(value: ir.Value | None, op_type: str) -> Sequence[ir.Value | None]:
    """The inputs of the standard operator that computes a value; none if another does."""
    node = value.producer() if value is not None else None
    return node.inputs if node is not None and node.domain == "" and node.op_type == op_type else ()


def _constant(value: ir.Value | None) -> list[float] | None:
    """The numbers of a constant, flat."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy().reshape(-1).tolist() if tensor is not None else None


def _is_turned(turned: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether a value is concat(-x[half:], x[:half]) on the last axis."""
    halves = _inputs_of(turned, "Concat")
    negated = _inputs_of(halves[0], "Neg") if len(halves) == 2 else ()
    if not negated or x is None or x.shape is None or not isinstance(x.shape[-1], int):
        return False
    half, last = x.shape[-1] // 2, len(x.shape) - 1
    upper, lower = _inputs_of(negated[0], "Slice"), _inputs_of(halves[1], "Slice")
    for part, start, end in ((upper, half, x.shape[-1]), (lower, 0, half)):
        if (
            len(part) < 4
            or part[0] is not x
            or _constant(part[1]) != [start]
            or _constant(part[3]) not in ([last], [-1])
        ):
            return False
        ends = _constant(part[2])
        if ends is None or min(ends[0], x.shape[-1]) != end or (len(part) > 4 and _constant(part[4]) != [1]):
            return False
    return True


def _before_heads(table: ir.Value | None) -> ir.Value | None:
    """The table [B, S, E] of one with an axis for the heads, [B, 1, S, E]."""
    inputs = _inputs_of(table, "Unsqueeze")
    return inputs[0] if inputs and _constant(inputs[1]) == [1] else None


def _half_of(table: ir.Value | None, halves: dict[ir.Value | None, ir.Value]) -> ir.Value | None:
    """The first half of a table on its last axis, computed apart; None if its halves may differ.

    Args:
        halves: those computed before.
    """
    if table in halves:
        return halves[table]
    node = table.producer() if table is not None else None
    if table is None or node is None or node.graph is None:
        return None
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) in (-1, len(table.shape or ()) - 1):
        first, *others = node.inputs
        return first if others == [first] else None
    if node.op_type not in ELEMENTWISE or any(len(_constant(value) or ()) != 1 for value in node.inputs[1:]):
        return None
    half = _half_of(node.inputs[0], halves)
    if half is None:
        return None
    new = ir.node(node.op_type, [half, *node.inputs[1:]], dict(node.attributes))
    node.graph.insert_before(node, new)
    new.outputs[0].type = table.type
    if table.shape is not None:
        new.outputs[0].shape = ir.Shape([*table.shape[:-1], half.shape[-1] if half.shape is not None else None])
    halves[table] = new.outputs[0]
    return halves[table]
