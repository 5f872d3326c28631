"""Runs graphs that are larger than memory a piece at a time, each an onnxruntime session of a few layers.

A `PiecedSession` stands where the runtime expects an `onnxruntime.InferenceSession`, so that the shipped runtime, its
caches and its loop stay what is verified. Computations that run in step (`lockstep.py`) go through the pieces together,
and each piece is opened once for all of them. Knows onnxruntime; nothing about what a graph means.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto
from onnx.helper import make_tensor_value_info

from qwen3vl_export.runtime.session import load_session

from ...budget.allocator import keep_freed_arrays, map_large_arrays, release_memory
from ..lockstep import reach
from .graph_pieces import CutGraph, Piece

PIECES = OPENED = 100_000  # more than a graph has, and more graphs than are opened
PARTS = 8  # pieces of a graph that does not fit as a whole are this part of what fits, so that most of them stay open
WITHOUT_PACKING = ("session.disable_prepacking", "1")
TYPES = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(int64)": TensorProto.INT64,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int8)": TensorProto.INT8,
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(bool)": TensorProto.BOOL,
}
NAMES: dict[int, str] = {number: name for name, number in TYPES.items()}

Memory = tuple[str, int, Any, Sequence[int], int]  # device, its number, dtype, shape, address


@dataclass(frozen=True)
class Argument:
    """An input or output of a graph, as `onnxruntime.NodeArg` describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Pieces:
    """Opens pieces of graphs, as many together as a budget allows.

    Args:
        budget: bytes of weights that open pieces may have; a single layer may take more.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.order: dict[str, int] = {}  # of the pieces, by the names they are reached under
        self.counts: dict[str, int] = {}  # how many pieces each graph has
        self._graphs = WeakValueDictionary[str, PiecedSession]()  # by the names of their pieces
        self._opened = 0  # graphs, so that each has names of its own
        self._open: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # sessions and their bytes, the latest used last
        self._turn = 0
        self._turns: dict[str, int] = {}  # in which each piece was needed last
        self._take_turns = False  # whether pieces of one graph were closed for others
        self._session: Any = None

    def open(self, path: Path, options: Any, model: bytes | None = None) -> PiecedSession:
        """A graph, as `load_session` opens it."""
        loaded = onnx.load(path, load_external_data=False) if model is None else onnx.load_from_string(model)
        self._opened += 1
        cut = CutGraph(loaded)
        if not cut.packs:
            options.add_session_config_entry(*WITHOUT_PACKING)
        session = PiecedSession(self, path, f"{path.stem} ({self._opened})", cut, options)
        for index, step in enumerate(session.steps):
            self.order[step] = (session.cut.rank * OPENED + self._opened) * PIECES + index
            self._graphs[step] = session
        self.counts[path.stem] = len(session.pieces)
        return session

    @contextmanager
    def loaded(self, step: str) -> Iterator[None]:
        """Inside, the session of one piece is open. Afterwards it stays open until others need its memory."""
        if step not in self._open:
            graph = self._graphs[step]
            size = graph.pieces[graph.steps.index(step)].size
            while self._open and sum(size for _, size in self._open.values()) + size > self.budget:
                if len(graph.pieces) > 1:  # of about one size; what a whole graph frees would not be taken again
                    self._take_turns = True
                    keep_freed_arrays()
                del self._open[self._dispensable(step)]
            self._open[step] = graph.open_piece(step), size
        self._open.move_to_end(step)
        self._turn += 1
        self._turns[step] = self._turn
        self._session, _ = self._open[step]
        try:
            yield
        finally:
            self._session = None

    def _dispensable(self, step: str) -> str:
        """The piece to close for another: one that was not needed since that one was, else the latest: of all its turn
        comes last."""
        oldest, latest = next(iter(self._open)), next(reversed(self._open))
        return oldest if self._turns[oldest] < self._turns.get(step, 0) else latest

    def close(self) -> None:
        """Close every piece."""
        self._open.clear()
        if self._take_turns:
            self._take_turns = False
            map_large_arrays()
            release_memory()

    @contextmanager
    def use(self, step: str) -> Iterator[Any]:
        """The session of one piece, once all computations in step have come so far."""
        if reach(step):
            yield self._session
            return
        try:
            with self.loaded(step):
                yield self._session
        finally:
            self.close()


@dataclass
class PiecedBinding:
    """Where a graph reads its inputs and writes its outputs, as `onnxruntime.IOBinding` records it."""

    inputs: dict[str, Memory] = field(default_factory=dict)
    outputs: dict[str, Memory] = field(default_factory=dict)

    def bind_input(self, name: str, *memory: Any) -> None:
        self.inputs[name] = memory

    def bind_output(self, name: str, *memory: Any) -> None:
        self.outputs[name] = memory

    def synchronize_inputs(self) -> None:
        """Nothing: all memory is the CPU's."""

    def synchronize_outputs(self) -> None:
        """As `synchronize_inputs`."""


class PiecedSession:
    """A graph whose pieces are run one after another.

    Args:
        path: of the graph, beside the data that the pieces read.
        name: that its pieces are reached under.
        options: of each piece's session.
    """

    def __init__(self, pieces: Pieces, path: Path, name: str, cut: CutGraph, options: Any) -> None:
        self.path = path
        self.cut = cut
        whole = cut.pieces(pieces.budget)
        self.pieces = whole if len(whole) == 1 else cut.pieces(pieces.budget // PARTS)
        self._parent = pieces
        self._options = options
        self.steps = [f"{name}, piece {index + 1} of {len(self.pieces)}" for index in range(len(self.pieces))]
        self._types: dict[str, ValueInfoProto] = {}  # of values that cross, known once their piece was open
        dims = (dim.dim_param for value in cut.inputs.values() for dim in value.type.tensor_type.shape.dim)
        self._dims = frozenset(filter(None, dims))

    def get_inputs(self) -> list[Argument]:
        return [argument(value) for name, value in self.cut.inputs.items() if name not in self.cut.weights]

    def get_overridable_initializers(self) -> list[Argument]:
        return [argument(value) for name, value in self.cut.inputs.items() if name in self.cut.weights]

    def get_outputs(self) -> list[Argument]:
        return [argument(value) for value in self.cut.outputs.values()]

    def io_binding(self) -> PiecedBinding:
        return PiecedBinding()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The outputs of these names."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        binding = PiecedBinding({name: memory_of(array) for name, array in arrays.items()})
        values = self._run_pieces(binding, frozenset(outputs))
        return [values[name] if name in values else arrays[name] for name in outputs]

    def run_with_iobinding(self, binding: PiecedBinding) -> None:
        self._run_pieces(binding, frozenset())

    def open_piece(self, step: str) -> Any:
        """The session of a piece; those before it have been open.

        Raises:
            ArtifactError: onnxruntime cannot open it.
        """
        model = self.cut.build(self.pieces[self.steps.index(step)], self._types)
        session = load_session(self.path, self._options, model.SerializeToString())
        for node in session.get_outputs():
            shape = [
                dim if dim is None or dim in self._dims or isinstance(dim, int) else f"{step}: {dim}"
                for dim in node.shape
            ]
            self._types[node.name] = make_tensor_value_info(node.name, TYPES[node.type], shape)
        return session

    def _run_pieces(self, binding: PiecedBinding, returned: frozenset[str]) -> dict[str, Any]:
        """The values to return; those that cross are dropped after the last piece that reads them."""
        values: dict[str, Any] = {}
        for index, (piece, step) in enumerate(zip(self.pieces, self.steps, strict=True)):
            values |= self._run_piece(piece, step, binding, values)
            later = {name for following in self.pieces[index + 1 :] for name in following.inputs} | returned
            values = {name: value for name, value in values.items() if name in later}
        return values

    def _run_piece(self, piece: Piece, step: str, bound: PiecedBinding, values: Mapping[str, Any]) -> dict[str, Any]:
        with self._parent.use(step) as session:
            binding = session.io_binding()
            for name in piece.inputs:
                if name in values and not isinstance(values[name], np.ndarray):
                    binding.bind_ortvalue_input(name, values[name])
                elif name in values or name in bound.inputs:  # else it has a default
                    binding.bind_input(name, *(memory_of(values[name]) if name in values else bound.inputs[name]))
            for name in piece.outputs:
                binding.bind_output(name, *bound.outputs.get(name, ("cpu",)))
            session.run_with_iobinding(binding)
            computed = zip(piece.outputs, binding.get_outputs(), strict=True)
            outputs = {name: value for name, value in computed if name not in bound.outputs}
            for name, value in outputs.items():
                if not self._types[name].type.tensor_type.shape.dim and value.shape():  # onnxruntime did not infer it
                    self._types[name] = make_tensor_value_info(
                        name, TYPES[value.data_type()], [None] * len(value.shape())
                    )
            # Copies, because a session's values keep its whole arena alive; numpy has no bfloat16.
            return {
                name: value if value.data_type() == "tensor(bfloat16)" else value.numpy()
                for name, value in outputs.items()
            }


def argument(value: ValueInfoProto) -> Argument:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return Argument(value.name, NAMES.get(tensor.elem_type, ""), shape)


def memory_of(array: NDArray[Any]) -> Memory:
    return ("cpu", 0, array.dtype, array.shape, array.ctypes.data)
