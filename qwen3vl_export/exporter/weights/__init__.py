"""Weights: a skeleton's weight inputs to initializers in external data.

Every tensor's place in the files is fixed before the first byte is written (`weights/file.py`), so that two workers can
fill them side by side and equal inputs give equal bytes. Graphs that share data files share their bytes: the second
user of a tensor points at the first one's. Tensors that the journal records as complete are not written again. Knows
nothing about architectures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from ...contract import Graph
from ..checkpoint import Checkpoint
from ..checkpoint.names import members_of
from .file import ArrayKey, FilePlacement, WeightFile, key_of, size_of
from .inputs import Source, fold_transforms, source_of, weight_inputs
from .journal import FileRange, Journal, hash_of
from .stream import Destination, ErrorSums, split_pieces, stream_piece

__all__ = [
    "WORKERS",
    "ArrayKey",
    "FilePlacement",
    "Progress",
    "WeightFile",
    "attach",
    "key_of",
    "size_of",
]

WORKERS = 2

Progress = Callable[[int], None]
TensorSource = tuple[str, Source]  # a tensor, which may be a fused one, and how it is stored, all parts together
Destinations = Mapping[str, Destination]  # by part


def attach(
    model: ir.Model, graph: Graph, checkpoint: Checkpoint, file: WeightFile, progress: Progress = lambda _: None
) -> ir.Model:
    """Write the bytes of every weight input to `file` and make it an initializer; the model is changed in place.

    Args:
        graph: the contract; its optional inputs get their defaults here, where no pass can fold them any more.
        progress: called with the bytes of each slice once it is written.

    Raises:
        BuildError: a packed array does not have the dtype that it is stored in.
    """
    model = fold_transforms(model)
    tied = checkpoint.tied
    sources: dict[TensorSource, dict[str, Destination]] = defaultdict(dict)
    arrays = {value: key_of(value, tied) for value in weight_inputs(model)}
    new = set(file.placement.add({key: size_of(value) for value, key in arrays.items()}))
    for value, key in arrays.items():
        file_range, source = file.placement.find(key), source_of(value)
        if key in new:
            new.remove(key)
            sources[key[0], replace(source, part="")][source.part] = file.destination(value, file_range)
        _make_initializer(model, value, file, file_range)
    file.errors |= _write_all(checkpoint, sources, file.journal, progress)
    for tensor, value in zip(graph.inputs, model.graph.inputs, strict=True):
        if tensor.default is not None:
            value.const_value = ir.tensor(np.array(tensor.default, tensor.dtype), name=tensor.name)
            model.graph.register_initializer(value)
    return passes.RemoveUnusedNodesPass()(model).model  # shapes of the folded Reshape nodes


def _make_initializer(model: ir.Model, value: ir.Value, file: WeightFile, file_range: FileRange) -> None:
    """Make a weight input an initializer with external data."""
    name, offset, length = file_range
    assert value.dtype is not None and value.shape is not None
    model.graph.inputs.remove(value)
    value.name = source_of(value).name
    value.const_value = ir.ExternalTensor(
        name, offset, length, value.dtype, shape=value.shape, name=value.name, base_dir=file.directory
    )
    model.graph.register_initializer(value)


def _write_all(
    checkpoint: Checkpoint, sources: Mapping[TensorSource, Destinations], journal: Journal | None, progress: Progress
) -> dict[str, float]:
    """Stream every tensor, `WORKERS` pieces at a time; returns the relative error of each quantized parameter."""
    errors: dict[str, float] = {}
    with ThreadPoolExecutor(WORKERS) as pool, _single_torch_thread():
        running: list[tuple[_Record, Source, dict[str, list[Future[ErrorSums]]]]] = []
        for (tensor, source), destinations in sources.items():
            record = _Record.of(tensor, source, destinations)
            if journal is not None and (entry := journal.entries.get(record.digest)) is not None:
                errors |= entry.errors
                continue
            futures = _start_streams(pool, checkpoint, tensor, source, destinations, progress)
            running.append((record, source, futures))
        try:
            for record, source, futures in running:
                relative: dict[str, float] = {}
                for parameter, pieces in futures.items():
                    sums = ErrorSums()
                    for future in pieces:
                        sums.add(future.result())
                    if source.packing is not None:
                        relative[parameter] = sums.relative
                errors |= relative
                if journal is not None:
                    journal.add(record.digest, record.ranges, relative, record.descriptors)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return errors


def _start_streams(
    pool: ThreadPoolExecutor,
    checkpoint: Checkpoint,
    tensor: str,
    source: Source,
    destinations: Destinations,
    progress: Progress,
) -> dict[str, list[Future[ErrorSums]]]:
    """Start to write a tensor, or those that are fused in it, one below the other; the pieces of each parameter."""
    futures: dict[str, list[Future[ErrorSums]]] = {}
    above = 0
    for member, parameter in zip(members_of(tensor), members_of(source.parameter), strict=True):
        shape = checkpoint.tensors[member].shape
        futures[parameter] = [
            pool.submit(stream_piece, checkpoint, member, source, destinations, piece, progress, above)
            for piece in split_pieces(shape, source.read_transform)
        ]
        above += shape[0] if shape else 0
    return futures


@dataclass(frozen=True)
class _Record:
    """What the journal records of one tensor."""

    digest: str
    ranges: list[FileRange]
    descriptors: list[int]

    @classmethod
    def of(cls, tensor: str, source: Source, destinations: Destinations) -> _Record:
        ranges = {
            part: (destination.file, destination.offset, destination.length)
            for part, destination in destinations.items()
        }
        kinds = {
            part: (destination.shape, destination.dtype.name, destination.transposed)
            for part, destination in destinations.items()
        }
        digest = hash_of((tensor, source, ranges, kinds))
        return cls(digest, [*ranges.values()], [destination.descriptor for destination in destinations.values()])


@contextmanager
def _single_torch_thread() -> Iterator[None]:
    """torch on one thread: the workers are the parallelism."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
