"""Weights: a skeleton's weight inputs to external data, one tensor in memory at a time.

Layout changes the graph asks of a weight (Transpose, Reshape) are folded into its bytes here, so that the graph never
moves a weight at run time. Graphs that share a data file share its bytes: the second user of a tensor points at the
first one's. Knows nothing about architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from .checkpoint import Checkpoint
from .contract import Graph
from .submodules import checkpoint_name
from .trace import WEIGHTS, weight_inputs

ALIGNMENT = 4096  # so that a runtime can map a tensor straight from the file

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # e.g. (("Reshape", (96, 1536)), ("Transpose", (1, 0)))
Progress = Callable[[int], None]


@dataclass
class WeightFile:
    """One external data file being written: `<name>.onnx_data`."""

    path: Path
    file: BinaryIO
    placed: dict[tuple[str, Layout, ir.DataType], tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, stem: str) -> WeightFile:
        path = directory / f"{stem}.onnx_data"
        return cls(path, path.open("wb"))

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def append(self, data: np.ndarray) -> tuple[int, int]:
        """Write an array at the next aligned offset; returns (offset, bytes)."""
        offset = -(-self.file.tell() // ALIGNMENT) * ALIGNMENT
        self.file.write(b"\0" * (offset - self.file.tell()))
        self.file.write(np.ascontiguousarray(data).data)
        return offset, data.nbytes


def attach(
    model: ir.Model, graph: Graph, checkpoint: Checkpoint, file: WeightFile, progress: Progress = lambda _: None
) -> ir.Model:
    """Turn every weight input into an initializer whose bytes lie in `file`; the model is changed in place.

    Args:
        graph: the contract; its optional inputs get their defaults here, where no pass can fold them any more.
        progress: called with the bytes of each tensor once it is written.
    """
    layouts = _fold_layouts(model)
    tied = bool(checkpoint.config.tie_word_embeddings)
    for value in weight_inputs(model):
        model.graph.inputs.remove(value)
        parameter, layout = layouts.get(value, (str(value.name).removeprefix(WEIGHTS), ()))
        if not value.uses():
            continue
        assert value.dtype is not None and value.shape is not None
        key = (checkpoint_name(parameter, tied), layout, value.dtype)
        if key not in file.placed:
            file.placed[key] = file.append(_read(checkpoint, *key))
        offset, length = file.placed[key]
        value.name = parameter
        value.const_value = ir.ExternalTensor(
            file.path.name, offset, length, value.dtype, shape=value.shape, name=parameter, base_dir=file.path.parent
        )
        model.graph.register_initializer(value)
        progress(length)
    for tensor, value in zip(graph.inputs, model.graph.inputs, strict=True):
        if tensor.default is not None:
            value.const_value = ir.tensor(np.array(tensor.default, tensor.dtype), name=tensor.name)
            model.graph.register_initializer(value)
    return passes.RemoveUnusedNodesPass()(model).model  # shapes of the folded Reshape nodes


def _read(checkpoint: Checkpoint, name: str, layout: Layout, dtype: ir.DataType) -> np.ndarray:
    """One tensor from disk, cast and laid out."""
    tensor = checkpoint.read(name).to(_TORCH[dtype])
    for op, argument in layout:
        tensor = tensor.reshape(argument) if op == "Reshape" else tensor.permute(argument)
    array: np.ndarray = tensor.contiguous().numpy()
    return array


_TORCH = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def _fold_layouts(model: ir.Model) -> dict[ir.Value, tuple[str, Layout]]:
    """Replace Transpose and Reshape nodes on weights by weight inputs of the new layout.

    Returns:
        For each new input: the parameter it comes from and the layout changes.
    """
    layouts: dict[ir.Value, tuple[str, Layout]] = {}
    pending = weight_inputs(model)
    while pending:
        weight = pending.pop()
        assert weight.name is not None and weight.shape is not None
        parameter, layout = layouts.get(weight, (weight.name.removeprefix(WEIGHTS), ()))
        for node in {user for user, index in weight.uses() if index == 0}:
            step = _layout_step(node)
            if step is None:
                continue
            layout_here = (*layout, step)
            name = WEIGHTS + parameter + "".join(f".{op.lower()}_{'x'.join(map(str, arg))}" for op, arg in layout_here)
            new = next((value for value in layouts if value.name == name), None)
            if new is None:
                shape = step[1] if step[0] == "Reshape" else [weight.shape[axis] for axis in step[1]]
                new = ir.Value(name=name, shape=ir.Shape(shape), type=weight.type)
                layouts[new] = (parameter, layout_here)
                model.graph.inputs.append(new)
                pending.append(new)
            node.outputs[0].replace_all_uses_with(new)
            model.graph.remove(node, safe=True)
    return layouts


def _layout_step(node: ir.Node) -> tuple[str, tuple[int, ...]] | None:
    """The layout change a node makes, or None if it is another kind of node."""
    if node.op_type == "Transpose":
        return "Transpose", tuple(node.attributes["perm"].as_ints())
    if node.op_type == "Reshape":
        shape = node.inputs[1].const_value if node.inputs[1] is not None else None
        if shape is not None:
            rows = tuple(int(n) for n in shape.numpy())
            return ("Reshape", rows) if min(rows) > 0 else _explicit(node, rows)
    return None


def _explicit(node: ir.Node, rows: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """A Reshape target with its -1 resolved."""
    source = node.inputs[0]
    assert source is not None and source.shape is not None
    total = int(np.prod([int(dim) for dim in source.shape]))  # type: ignore[arg-type]
    return "Reshape", tuple(int(n) for n in np.empty(total, np.uint8).reshape(rows).shape)
