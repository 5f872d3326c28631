"""Fewer copies around attention. `ir.Model -> ir.Model`.

    Transpose ▸ RotaryEmbedding ▸ Transpose ▸ Reshape   becomes   Reshape ▸ RotaryEmbedding <num_heads>
    Reshape to the shape a value has                    becomes   nothing

transformers rotates queries and keys as [B, N, S, E]; `GroupQueryAttention` takes them as [B, S, N * E], the layout of
their projections, which the operator rotates as well. Knows shapes as the tracer left them.

Legend: B batch, S tokens, N heads, E size of a head.
"""

from __future__ import annotations

import onnx_ir as ir

from .norms import have_same_shape

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, N, E] to [B, N, S, E], and back


def rotate_in_place(model: ir.Model) -> ir.Model:
    """Rotate queries and keys in the layout they have."""
    for rotary in list(model.graph):
        if rotary.op_type != "RotaryEmbedding" or rotary.domain or len(rotary.inputs) != 3:
            continue
        before = rotary.inputs[0].producer() if rotary.inputs[0] is not None else None
        after = only_user(rotary.outputs[0])
        merge = only_user(after.outputs[0]) if after is not None else None
        if not (swaps_heads(before) and swaps_heads(after)) or merge is None or merge.op_type != "Reshape":
            continue
        assert before is not None and after is not None and before.inputs[0] is not None
        source, out = before.inputs[0], merge.outputs[0]
        if source.shape is None or out.shape is None or len(out.shape) != 3 or not isinstance(source.shape[2], int):
            continue
        flat = ir.node("Reshape", [source, merge.inputs[1]])
        flat.outputs[0].name = f"{source.name}_by_token"
        flat.outputs[0].shape, flat.outputs[0].type = out.shape, out.type
        rotated = ir.node(
            "RotaryEmbedding",
            [flat.outputs[0], *rotary.inputs[1:]],
            attributes={"num_heads": source.shape[2], "interleaved": rotary.attributes.get_int("interleaved", 0)},
        )
        new = rotated.outputs[0]
        new.name, new.shape, new.type = out.name, out.shape, out.type
        model.graph.insert_before(merge, [flat, rotated])
        out.replace_all_uses_with(new)
        model.graph.remove([merge, after, rotary], safe=True)
        if not before.outputs[0].uses():
            model.graph.remove(before, safe=True)
    return model


def drop_identity_reshapes(model: ir.Model) -> ir.Model:
    """Remove each Reshape whose input and output provably have the same shape, except guards."""
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is None:
            continue
        source, out = node.inputs[0], node.outputs[0]
        is_guard = (node.name or "").startswith("guard: ")
        if is_guard or out.is_graph_output() or not have_same_shape(source, out):
            continue
        out.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
    return model


def swaps_heads(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == HEADS_FIRST


def only_user(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value; None if none or several do, or it is a graph output."""
    users = {node for node, _ in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None
