"""Weights: a skeleton's weight inputs to initializers in external data.

Every tensor's place in the files is fixed before the first byte is written (`weights/file.py`), so that two workers can
fill them side by side and equal inputs give equal bytes. Graphs that share data files share their bytes: the second
user of a tensor points at the first one's. What a journal knows to be written is not written again. Knows nothing about
architectures.
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
from .file import Key, Layout, Place, WeightFile, bytes_of, in_columns, key_of
from .inputs import Source, fold_layouts, source_of, weight_inputs
from .journal import Journal, hash_of
from .stream import Region, Squares, pieces, stream

__all__ = ["WORKERS", "Key", "Layout", "Progress", "WeightFile", "attach", "bytes_of", "in_columns", "key_of"]

WORKERS = 2

Progress = Callable[[int], None]
Job = tuple[str, Source]  # a tensor of the checkpoint and what becomes of it, all parts together
Regions = Mapping[str, Region]  # by part


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
    arrays = {value: key_of(value, tied) for value in weight_inputs(model)}
    new = set(file.layout.add({key: bytes_of(value) for value, key in arrays.items()}))
    for value, key in arrays.items():
        place, source = file.layout.find(key), source_of(value)
        if key in new:
            new.remove(key)
            jobs[key[0], replace(source, part="")][source.part] = file.region(value, place)
        _point(model, value, file, place)
    file.errors |= _run(checkpoint, jobs, file.journal, progress)
    for tensor_, value in zip(graph.inputs, model.graph.inputs, strict=True):
        if tensor_.default is not None:
            value.const_value = ir.tensor(np.array(tensor_.default, tensor_.dtype), name=tensor_.name)
            model.graph.register_initializer(value)
    return passes.RemoveUnusedNodesPass()(model).model  # shapes of the folded Reshape nodes


def _point(model: ir.Model, value: ir.Value, file: WeightFile, place: Place) -> None:
    """Make a weight input an initializer that lies at `place`."""
    name, offset, length = place
    assert value.dtype is not None and value.shape is not None
    model.graph.inputs.remove(value)
    value.name = source_of(value).name
    value.const_value = ir.ExternalTensor(
        name, offset, length, value.dtype, shape=value.shape, name=value.name, base_dir=file.directory
    )
    model.graph.register_initializer(value)


def _run(
    checkpoint: Checkpoint, jobs: Mapping[Job, Regions], journal: Journal | None, progress: Progress
) -> dict[str, float]:
    """Stream the pieces of every job, `WORKERS` at a time; returns the relative error of each quantized parameter."""
    errors: dict[str, float | None] = {}
    with ThreadPoolExecutor(WORKERS) as pool, _one_thread_each():
        running: list[tuple[_Record, Source, list[Future[Squares]]]] = []
        for (tensor, source), regions in jobs.items():
            record = _Record.of(tensor, source, regions)
            if journal is not None and (entry := journal.entries.get(record.made_of)) is not None:
                errors[source.parameter] = entry.error
                continue
            cuts = pieces(checkpoint.tensors[tensor].shape, source.layout)
            work = [pool.submit(stream, checkpoint, tensor, source, regions, cut, progress) for cut in cuts]
            running.append((record, source, work))
        try:
            for record, source, work in running:
                squares = Squares()
                for piece in work:
                    squares.add(piece.result())
                errors[source.parameter] = squares.error if source.packing is not None else None
                if journal is not None:
                    journal.add(record.made_of, record.places, errors[source.parameter], record.descriptors)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {parameter: error for parameter, error in errors.items() if error is not None}


@dataclass(frozen=True)
class _Record:
    """What the journal says of one job."""

    made_of: str
    places: list[Place]
    descriptors: list[int]

    @classmethod
    def of(cls, tensor: str, source: Source, regions: Regions) -> _Record:
        places = {part: (region.file, region.offset, region.length) for part, region in regions.items()}
        kinds = {part: (region.shape, region.dtype.name, region.columns) for part, region in regions.items()}
        made_of = hash_of((tensor, source, places, kinds))
        return cls(made_of, [*places.values()], [region.descriptor for region in regions.values()])


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch on one thread: the workers are the parallelism."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
