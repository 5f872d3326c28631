"""Unrolling: a skeleton traced with a few layers to the skeleton of all of them. `ir.Model -> ir.Model`.

The layers of a stack differ in their weights and their cache and in nothing else, and tracing one takes a second. So a
short stack is traced: the layers that something outside the stack reads from or adds to, two more to compare, and the
last. The second of the compared layers, the template, is copied once for each missing layer.

The two compared layers must be the same graph, node for node and constant for constant; anything else is an error. A
layer's nodes are those that depend on its weights or cache and that the next layer depends on in turn. Knows names and
nodes; nothing about architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ..errors import BuildError


@dataclass(frozen=True)
class Stack:
    """The layers of a submodule.

    Attributes:
        prefixes: of the names of a layer's inputs (weights included) and outputs, up to the layer's number.
        layers: their number.
        traced: how many of them are traced.
        taps: traced layer -> layer it represents, of those whose result is read outside the stack.
    """

    prefixes: tuple[str, ...]
    layers: int
    traced: int
    taps: Mapping[int, int] = field(default_factory=dict)

    def split_name(self, name: str | None) -> tuple[str, int, str] | None:
        """`past_key_values.3.key` -> (`past_key_values.`, 3, `.key`); None if it belongs to no layer."""
        for prefix in self.prefixes:
            if name is not None and name.startswith(prefix):
                number = name[len(prefix) :].partition(".")[0]
                return prefix, int(number), name[len(prefix) + len(number) :]
        return None

    def renumber(self, name: str | None, layer: int) -> str | None:
        """The same name in another layer."""
        parts = self.split_name(name)
        return name if parts is None else f"{parts[0]}{layer}{parts[2]}"


def unroll(model: ir.Model, stack: Stack) -> ir.Model:
    """Copy the last but one traced layer until there are `stack.layers`. The model is changed in place.

    Raises:
        BuildError: two traced layers are not alike.
    """
    if stack.layers == stack.traced:
        return model
    layers = _Layers(model, stack)
    template, last = stack.traced - 2, stack.traced - 1
    for layer in range(min([*stack.taps, template - 1]), template):
        layers.compare_with_next(layer)
    for value in (*model.graph.inputs, *model.graph.outputs):
        parts = stack.split_name(value.name)
        if parts is not None and parts[1] == last:
            value.name = stack.renumber(value.name, stack.layers - 1)
    bodies = [*layers.bodies]
    for layer in range(last, stack.layers - 1):
        bodies.append(layers.copy_layer(bodies[-2:], layer))
    replacements = []
    for value, end in _pair_outputs(bodies[template], bodies[-1]).items():
        replacements.append((value, end, {user for user, _ in value.uses() if layers.level.get(user) == last}))
    for traced, layer in stack.taps.items():
        inside = {*bodies[traced], *bodies[traced + 1]}
        for value, tapped in _pair_outputs(bodies[traced], bodies[layer]).items():
            replacements.append((value, tapped, {user for user, _ in value.uses() if user not in inside}))
    for value, new, users in replacements:
        _replace_inputs(value, new, users)
    for values in (model.graph.inputs, model.graph.outputs):
        ordered = _sort_by_layer(values, stack)
        values.clear()
        values.extend(ordered)
    model.graph.sort()
    return model


class _Layers:
    """The nodes of each layer of a graph.

    Attributes:
        level: node -> the highest layer it depends on.
        bodies: the nodes of each traced layer but the last, in order.
    """

    def __init__(self, model: ir.Model, stack: Stack) -> None:
        self.graph, self.stack = model.graph, stack
        self.level: dict[ir.Node, int] = {}
        for node in self.graph:
            self.level[node] = max((self._level(value) for value in node.inputs if value is not None), default=-1)

    def _level(self, value: ir.Value) -> int:
        producer = value.producer()
        if producer is not None:
            return self.level[producer]
        parts = self.stack.split_name(value.name)
        return -1 if parts is None else parts[1]

    @cached_property
    def bodies(self) -> list[list[ir.Node]]:
        members: set[ir.Node] = set()
        for node in reversed(self.graph):
            level = self.level[node]
            users = [user for value in node.outputs for user, _ in value.uses()]
            is_read = any(
                self.level[user] == level + 1 or (user in members and self.level[user] == level) for user in users
            )
            is_output = any(self.stack.split_name(v.name) and v.is_graph_output() for v in node.outputs)
            if level >= 0 and (is_read or is_output):
                members.add(node)
        bodies: list[list[ir.Node]] = [[] for _ in range(self.stack.traced - 1)]
        for node in self.graph:
            if node in members and self.level[node] < len(bodies):
                bodies[self.level[node]].append(node)
        return bodies

    def compare_with_next(self, layer: int) -> None:
        """Compare a layer with the next.

        Raises:
            BuildError: they are not the same graph.
        """
        left, right = self.bodies[layer], self.bodies[layer + 1]
        pairs = _pair_outputs(left, right) if len(left) == len(right) else {}
        carried: dict[
            ir.Value, ir.Value
        ] = {}  # what `right` reads from `left` -> what `left` reads from the layer before

        def values_alike(a: ir.Value | None, b: ir.Value | None) -> bool:
            if a is None or b is None or a is b:
                return a is b
            if a in pairs:
                return pairs[a] is b
            if self.stack.split_name(a.name) is not None and a.producer() is None:
                return b.producer() is None and self.stack.renumber(a.name, layer + 1) == b.name
            if b in pairs and self._level(a) == layer - 1:
                return carried.setdefault(b, a) is a
            if a.const_value is not None and b.const_value is not None:
                return _same_tensor(a.const_value, b.const_value)
            m, n = a.producer(), b.producer()
            if m is None or n is None or self.level[m] != self.level[n] or self.level[m] >= max(0, layer - 1):
                return False
            return a.index() == b.index() and nodes_alike(m, n)

        def nodes_alike(m: ir.Node, n: ir.Node) -> bool:
            return (
                m.op_identifier() == n.op_identifier()
                and len(m.outputs) == len(n.outputs)
                and _same_attributes(m, n)
                and len(m.inputs) == len(n.inputs)
                and all(values_alike(a, b) for a, b in zip(m.inputs, n.inputs, strict=True))
            )

        if not pairs or not all(nodes_alike(*pair) for pair in zip(left, right, strict=True)):
            raise BuildError(
                f"{self.graph.name}: traced layers {layer} and {layer + 1} are not alike", "This is a bug; report it"
            )

    def copy_layer(self, before: Sequence[list[ir.Node]], layer: int) -> list[ir.Node]:
        """Insert a copy of the last of two layers as the next one, `layer`; returns its nodes.

        The copy reads from the last layer what the last reads from the one before it.
        """
        copies: dict[ir.Value, ir.Value] = dict(_pair_outputs(*before))
        nodes = []
        for node in before[1]:
            inputs = [None if value is None else self._copied_input(value, copies, layer) for value in node.inputs]
            outputs = [_copy_value(value, f"{value.name}@{layer}") for value in node.outputs]
            nodes.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    inputs,
                    [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()],
                    overload=node.overload,
                    outputs=outputs,
                    version=node.version,
                    name=f"{node.name}@{layer}",
                    metadata_props=dict(node.metadata_props),
                )
            )
            for old, new in zip(node.outputs, outputs, strict=True):
                copies[old] = new
                if old.is_graph_output():
                    new.name = self.stack.renumber(old.name, layer)
                    self.graph.outputs.append(new)
        self.graph.insert_after(before[1][-1], nodes)
        return nodes

    def _copied_input(self, value: ir.Value, copies: dict[ir.Value, ir.Value], layer: int) -> ir.Value:
        if value not in copies and value.producer() is None and self.stack.split_name(value.name) is not None:
            copies[value] = _copy_value(value, self.stack.renumber(value.name, layer))
            self.graph.inputs.append(copies[value])
        return copies.get(value, value)


def _copy_value(value: ir.Value, name: str | None) -> ir.Value:
    shape = value.shape.copy() if value.shape is not None else None
    return ir.Value(name=name, type=value.type, shape=shape)


def _pair_outputs(left: Sequence[ir.Node], right: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
    """The outputs of nodes -> the outputs of as many others, in order."""
    pairs = zip(left, right, strict=True)
    return {a: b for m, n in pairs for a, b in zip(m.outputs, n.outputs, strict=False)}


def _replace_inputs(value: ir.Value, new: ir.Value, users: Iterable[ir.Node]) -> None:
    """Let these nodes read `new` instead of `value`."""
    for user in users:
        for index, read in enumerate(user.inputs):
            if read is value:
                user.replace_input_with(index, new)


def _sort_by_layer(values: Iterable[ir.Value], stack: Stack) -> list[ir.Value]:
    """Values with those of each prefix sorted by layer, from the position of the first of them on."""
    split_names = {value: stack.split_name(value.name) for value in values}
    ranks: dict[tuple[str, str], int] = {}  # of a name within its layer: as in the first layer that has it
    groups: dict[str, list[tuple[int, int, ir.Value]]] = {}
    for value, parts in split_names.items():
        if parts is not None:
            rank = ranks.setdefault((parts[0], parts[2]), len(ranks))
            groups.setdefault(parts[0], []).append((parts[1], rank, value))
    ordered: list[ir.Value] = []
    for value, parts in split_names.items():
        if parts is None:
            ordered.append(value)
        elif group := groups.pop(parts[0], None):
            ordered += [member for _, _, member in sorted(group, key=lambda entry: entry[:2])]
    return ordered


def _same_attributes(m: ir.Node, n: ir.Node) -> bool:
    if m.attributes.keys() != n.attributes.keys():
        return False
    pairs = [(attribute, n.attributes[name]) for name, attribute in m.attributes.items()]
    return all(
        a.type == b.type
        and (_same_tensor(a.value, b.value) if a.type == ir.AttributeType.TENSOR else a.value == b.value)
        for a, b in pairs
    )


def _same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())
