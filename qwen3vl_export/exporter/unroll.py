"""Unrolling: a skeleton traced with a few layers to the skeleton of all of them. `ir.Model -> ir.Model`.

The layers of a stack differ in their weights and their cache and in nothing else, and tracing one takes a second. So a
short stack is traced: the layers that something outside the stack reads from or adds to, two more that show what a
layer is, and the last. The second of these two is repeated as often as layers are missing.

Nothing is taken on trust: the two must be the same graph, node for node and constant for constant, or it is an error.
A layer's nodes are those that read its own weights or cache, directly or not, and that the next layer reads from in
turn. Knows names and nodes; nothing about architectures.
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
        prefixes: what names of inputs (weights among them) and outputs of one layer begin with, up to its number.
        layers: how many there are.
        traced: how many of them are traced.
        taps: traced layer -> layer, of those whose result is read from outside the stack.
    """

    prefixes: tuple[str, ...]
    layers: int
    traced: int
    taps: Mapping[int, int] = field(default_factory=dict)

    def split(self, name: str | None) -> tuple[str, int, str] | None:
        """`past_key_values.3.key` -> (`past_key_values.`, 3, `.key`); None if it is of no layer."""
        for prefix in self.prefixes:
            if name is not None and name.startswith(prefix):
                number = name[len(prefix) :].partition(".")[0]
                return prefix, int(number), name[len(prefix) + len(number) :]
        return None

    def moved(self, name: str | None, layer: int) -> str | None:
        """The same name in another layer."""
        parts = self.split(name)
        return name if parts is None else f"{parts[0]}{layer}{parts[2]}"


def unroll(model: ir.Model, stack: Stack) -> ir.Model:
    """Repeat the last but one traced layer until there are `stack.layers`.

    Raises:
        BuildError: two traced layers are not alike.
    """
    if stack.layers == stack.traced:
        return model
    layers = _Layers(model, stack)
    template, last = stack.traced - 2, stack.traced - 1
    for layer in range(min([*stack.taps, template - 1]), template):
        layers.check_alike(layer)
    for value in (*model.graph.inputs, *model.graph.outputs):
        parts = stack.split(value.name)
        if parts is not None and parts[1] == last:
            value.name = stack.moved(value.name, stack.layers - 1)
    bodies = [*layers.bodies]
    for layer in range(last, stack.layers - 1):
        bodies.append(layers.repeat(bodies[-2:], layer))
    routes = []
    for value, end in _matching(bodies[template], bodies[-1]).items():
        routes.append((value, end, {user for user, _ in value.uses() if layers.level.get(user) == last}))
    for traced, layer in stack.taps.items():
        inside = {*bodies[traced], *bodies[traced + 1]}
        for value, tapped in _matching(bodies[traced], bodies[layer]).items():
            routes.append((value, tapped, {user for user, _ in value.uses() if user not in inside}))
    for value, new, users in routes:
        _reroute(value, new, users)
    for values in (model.graph.inputs, model.graph.outputs):
        ordered = _in_order(values, stack)
        values.clear()
        values.extend(ordered)
    model.graph.sort()
    return model


class _Layers:
    """Which nodes of a graph are a layer's.

    Attributes:
        level: node -> the highest layer it depends on.
        bodies: the nodes of each layer but the last, in order.
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
        parts = self.stack.split(value.name)
        return -1 if parts is None else parts[1]

    @cached_property
    def bodies(self) -> list[list[ir.Node]]:
        kept: set[ir.Node] = set()
        for node in reversed(self.graph):
            level = self.level[node]
            users = [user for value in node.outputs for user, _ in value.uses()]
            read = any(self.level[user] == level + 1 or (user in kept and self.level[user] == level) for user in users)
            if level >= 0 and (read or any(self.stack.split(v.name) and v.is_graph_output() for v in node.outputs)):
                kept.add(node)
        bodies: list[list[ir.Node]] = [[] for _ in range(self.stack.traced - 1)]
        for node in self.graph:
            if node in kept and self.level[node] < len(bodies):
                bodies[self.level[node]].append(node)
        return bodies

    def check_alike(self, layer: int) -> None:
        """Compare a layer with the next.

        Raises:
            BuildError: they are not the same graph.
        """
        left, right = self.bodies[layer], self.bodies[layer + 1]
        same = _matching(left, right) if len(left) == len(right) else {}
        carried: dict[ir.Value, ir.Value] = {}  # what `right` reads of `left` -> what `left` reads of the one before

        def alike(a: ir.Value | None, b: ir.Value | None) -> bool:
            if a is None or b is None or a is b:
                return a is b
            if a in same:
                return same[a] is b
            if self.stack.split(a.name) is not None and a.producer() is None:
                return b.producer() is None and self.stack.moved(a.name, layer + 1) == b.name
            if b in same and self._level(a) == layer - 1:
                return carried.setdefault(b, a) is a
            if a.const_value is not None and b.const_value is not None:
                return _same_tensor(a.const_value, b.const_value)
            one, other = a.producer(), b.producer()
            if (
                one is None
                or other is None
                or self.level[one] != self.level[other]
                or self.level[one] >= max(0, layer - 1)
            ):
                return False
            return a.index() == b.index() and nodes_alike(one, other)

        def nodes_alike(one: ir.Node, other: ir.Node) -> bool:
            return (
                one.op_identifier() == other.op_identifier()
                and len(one.outputs) == len(other.outputs)
                and _same_attributes(one, other)
                and len(one.inputs) == len(other.inputs)
                and all(alike(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
            )

        if not same or not all(nodes_alike(*pair) for pair in zip(left, right, strict=True)):
            raise BuildError(
                f"{self.graph.name}: traced layers {layer} and {layer + 1} are not alike", "This is a bug; report it"
            )

    def repeat(self, before: Sequence[list[ir.Node]], layer: int) -> list[ir.Node]:
        """A copy of the last of two layers as the next one, `layer`: it reads of the last what the last reads of the
        one before."""
        known: dict[ir.Value, ir.Value] = dict(_matching(*before))
        nodes = []
        for node in before[1]:
            inputs = [None if value is None else self._input(value, known, layer) for value in node.inputs]
            outputs = [_like(value, f"{value.name}@{layer}") for value in node.outputs]
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
                known[old] = new
                if old.is_graph_output():
                    new.name = self.stack.moved(old.name, layer)
                    self.graph.outputs.append(new)
        self.graph.insert_after(before[1][-1], nodes)
        return nodes

    def _input(self, value: ir.Value, known: dict[ir.Value, ir.Value], layer: int) -> ir.Value:
        if value not in known and value.producer() is None and self.stack.split(value.name) is not None:
            known[value] = _like(value, self.stack.moved(value.name, layer))
            self.graph.inputs.append(known[value])
        return known.get(value, value)


def _like(value: ir.Value, name: str | None) -> ir.Value:
    shape = value.shape.copy() if value.shape is not None else None
    return ir.Value(name=name, type=value.type, shape=shape)


def _matching(left: Sequence[ir.Node], right: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
    """The outputs of nodes to those of as many others, one by one."""
    pairs = zip(left, right, strict=True)
    return {a: b for one, other in pairs for a, b in zip(one.outputs, other.outputs, strict=False)}


def _reroute(value: ir.Value, to: ir.Value, users: Iterable[ir.Node]) -> None:
    """Let these nodes read `to` instead of `value`."""
    for user in users:
        for index, read in enumerate(user.inputs):
            if read is value:
                user.replace_input_with(index, to)


def _in_order(values: Iterable[ir.Value], stack: Stack) -> list[ir.Value]:
    """Values with those of each prefix sorted by layer, where the first of them stood."""
    known = {value: stack.split(value.name) for value in values}
    places: dict[tuple[str, str], int] = {}  # of a name within its layer: as in the first layer that has it
    groups: dict[str, list[tuple[int, int, ir.Value]]] = {}
    for value, parts in known.items():
        if parts is not None:
            place = places.setdefault((parts[0], parts[2]), len(places))
            groups.setdefault(parts[0], []).append((parts[1], place, value))
    ordered: list[ir.Value] = []
    for value, parts in known.items():
        if parts is None:
            ordered.append(value)
        elif group := groups.pop(parts[0], None):
            ordered += [one for _, _, one in sorted(group, key=lambda entry: entry[:2])]
    return ordered


def _same_attributes(one: ir.Node, other: ir.Node) -> bool:
    if one.attributes.keys() != other.attributes.keys():
        return False
    pairs = [(attribute, other.attributes[name]) for name, attribute in one.attributes.items()]
    return all(
        a.type == b.type
        and (_same_tensor(a.value, b.value) if a.type == ir.AttributeType.TENSOR else a.value == b.value)
        for a, b in pairs
    )


def _same_tensor(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    return one.dtype == other.dtype and np.array_equal(one.numpy(), other.numpy())
