"""Cuts an ONNX graph at its layers into smaller graphs over the same data files.

A piece is a run of consecutive nodes. What it computes and later nodes read crosses to the pieces after it: the
residual stream, and a few values that all layers share, such as rotary angles. Between two layers, which are found by
the names of their weights (`probe.py`), a graph is cut where the fewest values cross. Nodes that depend on weights
alone, such as casts to float32, are repeated in every piece that needs them.

Knows ONNX graphs; runs nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import tensor_dtype_to_np_dtype

from .probe import module_of

LAYER = re.compile(r"(?:layers|blocks)\.\d+")  # what is never cut in two, at the start of a module's name
TWO_IN_A_BYTE = (TensorProto.INT4, TensorProto.UINT4)
PACKING = ("MatMulNBits", "QMoE", "MatMulInteger", "DynamicQuantizeMatMul")  # slow unless onnxruntime packs weights
PACKED_COPY = 0.25  # of the weights: onnxruntime packs some of them while the stored ones are still in memory
FOLDED = ("Cast", "Transpose")  # of weights alone: onnxruntime computes them when it opens a graph, and keeps both


@dataclass(frozen=True)
class Piece:
    """Nodes that are run together.

    Attributes:
        nodes: their places in the graph, with those that depend on weights alone.
        initializers: the weights they read.
        inputs: values they read, of the graph's inputs and of the pieces before.
        outputs: values they compute for the pieces after, and for who runs the graph.
        size: bytes of weights, with their packed copies, and of what onnxruntime computes from weights alone.
    """

    nodes: Sequence[int]
    initializers: Sequence[str]
    inputs: Sequence[str]
    outputs: Sequence[str]
    size: int


class CutGraph:
    """A graph and where it can be cut.

    Args:
        model: without its external data.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name: value for value in graph.input}
        self.outputs = {value.name: value for value in graph.output}
        self._constants: dict[str, int] = {}  # values that depend on weights alone -> their node
        self._steps: list[int] = []  # the other nodes
        for index, node in enumerate(graph.node):
            if self._is_constant(node):
                self._constants |= dict.fromkeys(node.output, index)
            else:
                self._steps.append(index)
        self._reads = [self._sources(values_read(graph.node[index])) for index in self._steps]
        self._made = {
            name: place for place, index in enumerate(self._steps) for name in graph.node[index].output if name
        }

    def pieces(self, budget: int) -> list[Piece]:
        """As few pieces as possible, each of at most `budget` bytes unless a single layer takes more."""
        bounds, start = [0], 0
        places = [*self.cuts, len(self._steps)]
        for place, following in pairwise(places):
            if self.size(start, following) > budget:
                bounds.append(place)
                start = place
        bounds.append(len(self._steps))
        return [self._piece(*window) for window in pairwise(bounds)]

    @cached_property
    def rank(self) -> int:
        """In the order in which a prompt is read: 0 of a tower's blocks, 2 of a decoder's layers, 1 of neither."""
        layers = filter(None, (LAYER.match(module_of(name) or "") for name in self.weights))
        kinds = {layer[0].split(".")[0] for layer in layers}
        return 2 if "layers" in kinds else 0 if "blocks" in kinds else 1

    @cached_property
    def packs(self) -> bool:
        """Whether onnxruntime has to pack the weights. Else they stay in their file's pages: opening takes no time, and
        the system may drop them and read them again."""
        return any(node.op_type in PACKING for node in self.model.graph.node)

    @property
    def total(self) -> int:
        """Bytes of the graph as a single piece."""
        return self.size(0, len(self._steps))

    @property
    def largest(self) -> int:
        """Bytes of the largest piece where every cut is made."""
        return max(piece.size for piece in self.pieces(0))

    @cached_property
    def cuts(self) -> list[int]:
        """Places between layers, as numbers of the nodes before them; those that are not for weights alone."""
        spans: dict[str, list[int]] = {}
        for place, (weights, _, _) in enumerate(self._reads):
            for module in filter(None, map(module_of, weights)):
                layer = LAYER.match(module)
                spans.setdefault(layer[0] if layer else module, []).append(place)
        cuts, end = [], -1
        crossing = self._crossing()
        for first, last in sorted((span[0], span[-1]) for span in spans.values()):
            if -1 < end < first:
                cuts.append(min(range(end + 1, first + 1), key=crossing.__getitem__))
            end = max(end, last)
        return cuts

    def size(self, start: int, end: int) -> int:
        """Bytes of weights that a window of nodes reads, packed or not, and of what is computed from weights alone."""
        weights, constants = self._window(start, end)
        folded = sum(self._folded(self.model.graph.node[index]) for index in constants)
        stored = sum(bytes_of(self.weights[name]) for name in weights)
        return round((1 + PACKED_COPY * self.packs) * stored) + folded

    @property
    def folded(self) -> int:
        """Bytes of what onnxruntime computes from weights alone and keeps beside them, in all nodes."""
        return sum(self._folded(self.model.graph.node[index]) for index in set(self._constants.values()))

    def build(self, piece: Piece, types: Mapping[str, ValueInfoProto]) -> ModelProto:
        """The model of a piece.

        Args:
            types: of the values of other pieces.
        """
        model = ModelProto()
        for field in ("ir_version", "producer_name", "domain"):
            setattr(model, field, getattr(self.model, field))
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        graph = model.graph
        graph.name = self.model.graph.name
        graph.node.extend(self.model.graph.node[index] for index in piece.nodes)
        graph.initializer.extend(self.weights[name] for name in piece.initializers)
        graph.input.extend(self.inputs[name] if name in self.inputs else types[name] for name in piece.inputs)
        graph.output.extend(self.outputs.get(name, ValueInfoProto(name=name)) for name in piece.outputs)
        return model

    def _piece(self, start: int, end: int) -> Piece:
        weights, constants = self._window(start, end)
        inside = {name for name, place in self._made.items() if start <= place < end}
        read = dict.fromkeys(name for _, _, names in self._reads[start:end] for name in names)
        later = {name for _, _, names in self._reads[end:] for name in names}
        return Piece(
            nodes=sorted([*constants, *self._steps[start:end]]),
            initializers=sorted(weights),
            inputs=[name for name in read if name not in inside],
            outputs=[name for name in self._made if name in inside and (name in later or name in self.outputs)],
            size=self.size(start, end),
        )

    def _window(self, start: int, end: int) -> tuple[set[str], set[int]]:
        """The weights that a window of nodes reads, and the nodes that depend on weights alone that it needs."""
        weights: set[str] = set()
        constants: set[int] = set()
        for names, nodes, _ in self._reads[start:end]:
            weights |= names
            constants |= nodes
        return weights, constants

    def _crossing(self) -> list[int]:
        """For each place, how many values computed before it are read after it."""
        last: dict[str, int] = {}
        for place, (_, _, names) in enumerate(self._reads):
            last |= dict.fromkeys((name for name in names if name in self._made), place)
        changes: defaultdict[int, int] = defaultdict(int)
        for name, place in last.items():
            changes[self._made[name] + 1] += 1
            changes[place + 1] -= 1
        counts, alive = [], 0
        for place in range(len(self._steps) + 1):
            alive += changes[place]
            counts.append(alive)
        return counts

    def _is_constant(self, node: NodeProto) -> bool:
        """Whether a node depends on weights alone, and nobody asks for its values."""
        if any(name in self.outputs for name in node.output):
            return False
        return all(name in self._constants or self._is_fixed(name) for name in values_read(node))

    def _is_fixed(self, name: str) -> bool:
        return name in self.weights and name not in self.inputs

    def _sources(self, names: Iterable[str]) -> tuple[set[str], set[int], list[str]]:
        """What values come from: weights, nodes that depend on weights alone, and other values."""
        weights: set[str] = set()
        constants: set[int] = set()
        values, pending = [], list(names)
        while pending:
            name = pending.pop()
            if name in self._constants:
                if self._constants[name] not in constants:
                    constants.add(self._constants[name])
                    pending += values_read(self.model.graph.node[self._constants[name]])
                continue
            if name in self.weights:
                weights.add(name)
            if not self._is_fixed(name):
                values.append(name)
        return weights, constants, values

    def _folded(self, node: NodeProto) -> int:
        """Bytes of what onnxruntime keeps of a node that depends on weights alone."""
        if node.op_type not in FOLDED or node.input[0] not in self.weights:
            return 0
        weight = self.weights[node.input[0]]
        dtype = next((attribute.i for attribute in node.attribute if attribute.name == "to"), weight.data_type)
        return bytes_of(weight, dtype)


def values_read(node: NodeProto) -> list[str]:
    """The values that a node reads, its bodies included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in bodies(attribute):
            names += values_from_outside(body)
    return names


def values_from_outside(body: GraphProto) -> Iterator[str]:
    """The values that a body of a loop or a branch reads from the graph around it."""
    inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    for node in body.node:
        yield from (name for name in values_read(node) if name not in inside)
        inside.update(node.output)
    yield from (value.name for value in body.output if value.name not in inside)


def bodies(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)


def bytes_of(tensor: TensorProto, dtype: int | None = None) -> int:
    """Of its values, in another dtype if one is given; 4-bit values are stored two in a byte."""
    dtype = tensor.data_type if dtype is None else dtype
    values = int(prod(tensor.dims))
    if dtype in TWO_IN_A_BYTE:
        return -(-values // 2)
    return values * int(tensor_dtype_to_np_dtype(dtype).itemsize)
