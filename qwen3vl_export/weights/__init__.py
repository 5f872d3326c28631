"""Weights: a skeleton's weight inputs to initializers in external data.

Every tensor's place in the file is fixed before the first byte is written, so that two workers can fill it side by side
and equal inputs give equal bytes. Graphs that share a data file share its bytes: the second user of a tensor points at
the first one's. Knows nothing about architectures.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from ..checkpoint import Checkpoint
from ..contract import Graph
from ..submodules import checkpoint_name
from ..trace import weight_inputs
from .layouts import Source, fold_layouts, shape_of, source_of
from .stream import COLUMNS, Region, stream

ALIGNMENT = 4096  # so that a runtime can map a tensor straight from the file
WORKERS = 2

Progress = Callable[[int], None]
Job = tuple[str, Source]  # a tensor of the checkpoint and what becomes of it, all parts together
Key = tuple[str, Source, ir.DataType]  # a tensor of the checkpoint and what is stored of it: equal keys share bytes


@dataclass
class WeightFile:
    """One external data file being written: `<name>.onnx_data`.

    Attributes:
        placed: (checkpoint tensor, source, dtype) -> (offset, bytes) of everything that has its place.
        errors: parameter -> relative L2 error of its quantized values.
    """

    path: Path
    descriptor: int
    end: int = 0
    placed: dict[Key, tuple[int, int]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, stem: str) -> WeightFile:
        path = directory / f"{stem}.onnx_data"
        return cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.descriptor)

    def place(self, value: ir.Value, source: Source) -> Region:
        """Fresh bytes for a weight input."""
        assert value.dtype is not None
        offset = aligned(self.end)
        region = Region(self.descriptor, offset, shape_of(value), value.dtype, in_columns(source))
        self.end = offset + region.length
        os.truncate(self.descriptor, self.end)
        return region


def aligned(offset: int) -> int:
    """The next offset at which a weight may start."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def key_of(value: ir.Value, tied: bool) -> Key:
    """What the bytes of a weight input are."""
    assert value.dtype is not None
    source = source_of(value)
    tensor = checkpoint_name(source.parameter, tied)
    return tensor, replace(source, parameter=tensor), value.dtype


def in_columns(source: Source) -> bool:
    """Whether the rows of the checkpoint's tensor are columns of the array."""
    if source.packing is None:
        return bool(source.layout) and source.layout[-1] == COLUMNS
    return source.part in source.packing.columns


def attach(
    model: ir.Model, graph: Graph, checkpoint: Checkpoint, file: WeightFile, progress: Progress = lambda _: None
) -> ir.Model:
    """Turn every weight input into an initializer whose bytes lie in `file`; the model is changed in place.

    Args:
        graph: the contract; its optional inputs get their defaults here, where no pass can fold them any more.
        progress: called with the bytes of each slice once it is written.
    """
    model = fold_layouts(model)
    tied = bool(checkpoint.config.tie_word_embeddings)
    jobs: dict[Job, dict[str, Region]] = defaultdict(dict)
    for value in weight_inputs(model):
        model.graph.inputs.remove(value)
        assert value.dtype is not None and value.shape is not None
        source = source_of(value)
        key = key_of(value, tied)
        tensor = key[0]
        if key not in file.placed:
            region = file.place(value, source)
            file.placed[key] = region.offset, region.length
            jobs[tensor, replace(source, part="")][source.part] = region
        offset, length = file.placed[key]
        value.name = source.name
        value.const_value = ir.ExternalTensor(
            file.path.name, offset, length, value.dtype, shape=value.shape, name=value.name, base_dir=file.path.parent
        )
        model.graph.register_initializer(value)
    file.errors |= _run(checkpoint, jobs, progress)
    for tensor_, value in zip(graph.inputs, model.graph.inputs, strict=True):
        if tensor_.default is not None:
            value.const_value = ir.tensor(np.array(tensor_.default, tensor_.dtype), name=tensor_.name)
            model.graph.register_initializer(value)
    return passes.RemoveUnusedNodesPass()(model).model  # shapes of the folded Reshape nodes


def _run(checkpoint: Checkpoint, jobs: Mapping[Job, Mapping[str, Region]], progress: Progress) -> dict[str, float]:
    """Stream every job, `WORKERS` at a time; returns the relative error of each quantized parameter."""
    with ThreadPoolExecutor(WORKERS) as pool, _one_thread_each():
        results = [
            (source.parameter, pool.submit(stream, checkpoint, tensor, source, regions, progress))
            for (tensor, source), regions in jobs.items()
        ]
        try:
            found = {parameter: future.result() for parameter, future in results}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {parameter: error for parameter, error in found.items() if error is not None}


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch on one thread: the workers are the parallelism."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
