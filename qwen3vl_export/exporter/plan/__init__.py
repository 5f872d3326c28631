"""The plan of a build: which files it writes, how many bytes, how much memory and time, before a weight is read.

Weights are counted to the byte, on the finished skeletons, as `weights/` will place them; the graphs beside them gain
a few kilobytes when they learn where their weights lie. Time and memory are estimates: one slice of random numbers per
kind of weight goes through the real writer, on the disk that will be written to, and is scaled up. Tracing was just
done and is measured.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors.torch import save_file

from ...artifact import CHECKPOINT_FILES, GRAPH_DIR
from ...errors import SpaceError
from ...packaging import storage
from ...packaging.package import Storage
from ...recipe.model import Recipe
from ...replaceable import check_output
from ..checkpoint import SINGLE, Checkpoint
from ..skeletons import Log, Skeleton, inputs_of, lenders_first, open_for, skeletons
from ..weights import WORKERS, ArrayKey, FilePlacement, is_transposed, key_of
from ..weights.inputs import Source, fold_transforms, shape_of, source_of, weight_inputs
from ..weights.packing import Packing
from ..weights.stream import PIECE_VALUES, STRIP_VALUES, Destination, rows_per_read, split_pieces, stream_piece

SAMPLE_WIDTH = 2048  # values of a row in the timed piece
HASHED = 32 << 20  # bytes whose checksum is timed
STRIP_COPIES = 10  # float32 copies of a strip that exist at once while it is quantized


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written, and its bytes by dtype; bytes of no dtype are graph, settings or alignment."""

    name: str
    bytes: int
    dtypes: Mapping[str, int]

    @property
    def weights(self) -> int:
        """Bytes of weights."""
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do.

    Attributes:
        files: everything but the manifest and the settings of packaged runtimes, some kilobytes.
        free: bytes free where they go.
        memory: estimated peak of resident memory, bytes.
        seconds: estimated duration of each part of the build.
    """

    files: tuple[PlannedFile, ...]
    free: int
    memory: int
    seconds: Mapping[str, float]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def plan_build(
    recipe: Recipe, *, checkpoint: str | None = None, out: Path | None = None, log: Log = print
) -> BuildPlan:
    """What `build` would do with the same arguments; writes nothing that stays and reads no weight.

    Raises:
        Qwen3VLExportError: as `build`, except that neither a disk with too little room nor an artifact at `out` is an
            error here.
    """
    out = out or Path("artifacts") / recipe.name
    check_output(out, force=True, inputs=inputs_of(recipe, checkpoint))
    start = time.perf_counter()
    opened = open_for(recipe, checkpoint)
    found = skeletons(recipe, opened, log)
    drawn = time.perf_counter()
    files = planned_files(found, opened, storage(recipe.packaging.runtimes))
    models = [skeleton.model for skeleton in found]
    place = next(path for path in out.absolute().parents if path.is_dir())
    hashed = sum(file.bytes for file in files) + sum(path.stat().st_size for path in opened.files)
    return BuildPlan(
        files=tuple(files),
        free=check_space(place, 0),
        memory=estimate_memory(models, opened),
        seconds={
            "tracing": drawn - start,
            "weights": estimate_writing(models, opened, place),
            "checksums": estimate_hashing(hashed),
        },
    )


def planned_files(found: Sequence[Skeleton], checkpoint: Checkpoint, storage: Storage) -> list[PlannedFile]:
    """Every file that skeletons become, and the checkpoint's settings."""
    tied = bool(checkpoint.config.tie_word_embeddings)
    layouts = layouts_of(found, storage)
    files = []
    for one in lenders_first(found):
        layouts[one.data_stem].add({key: of.length for key, of in _regions([one.model], tied).items()})
        size = len(ir.to_proto(one.model).SerializeToString())
        files.append(PlannedFile(f"{GRAPH_DIR}/{one.name}.onnx", size, {}))
    files += [file for layout in layouts.values() for file in weight_files(layout)]
    settings = [checkpoint.root / name for name in CHECKPOINT_FILES] + sorted(checkpoint.root.glob("LICENSE*"))
    files += [PlannedFile(path.name, path.stat().st_size, {}) for path in settings if path.is_file()]
    return files


def layouts_of(found: Sequence[Skeleton], storage: Storage) -> dict[str, FilePlacement]:
    """Where the weights of these graphs will lie, by stem and still without any. The decoder reads from the token
    table's files what lies there, a tied output head stored in the same way, unless a runtime would not find it."""
    layouts = {one.data_stem: FilePlacement(one.data_stem, storage.largest_file) for one in found}
    for one in found:
        if one.lender is not None:
            layouts[one.data_stem].lender = layouts[one.lender]
    return layouts


def weight_files(layout: FilePlacement) -> list[PlannedFile]:
    """The data files of one stem; a tensor that several graphs read lies there once."""
    dtypes: dict[str, Counter[str]] = {name: Counter() for name in layout.file_sizes}
    for key, (name, _, length) in layout.ranges.items():
        dtypes[name][key[2].name.lower()] += length
    return [
        PlannedFile(f"{GRAPH_DIR}/{name}", length, dict(sorted(dtypes[name].items())))
        for name, length in layout.file_sizes.items()
    ]


def check_space(directory: Path, needed: int) -> int:
    """The bytes free at `directory`, which need not exist yet.

    Raises:
        SpaceError: fewer than `needed`.
    """
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise SpaceError(
            f"{place}: the artifact takes {needed:,} bytes, {free:,} are free",
            "Free some space, or choose another --out",
        )
    return free


def estimate_memory(models: Sequence[ir.Model], checkpoint: Checkpoint) -> int:
    """Peak resident bytes: what tracing took, or what is left of it beside the strips and columns in flight."""
    tied = bool(checkpoint.config.tie_word_embeddings)
    largest = 0
    for (tensor, source, _), region in _regions(models, tied).items():
        shape = checkpoint.tensors[tensor].shape
        read = 4 * rows_per_read(shape, source.transform) * prod(shape[1:])
        columns = max(cut.stop - cut.start for cut in split_pieces(shape, source.transform)) if region.transposed else 0
        largest = max(largest, read + columns * region.shape[0] * region.dtype.bitwidth // 8)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    return usage + WORKERS * (largest + 4 * STRIP_COPIES * STRIP_VALUES)


def estimate_writing(models: Sequence[ir.Model], checkpoint: Checkpoint, directory: Path) -> float:
    """Seconds to read, lay out, cast or quantize and write every weight, with `WORKERS` at it.

    Args:
        directory: on the disk that the artifact goes to.
    """
    values: Counter[tuple[Packing | None, ir.DataType]] = Counter()
    seen = set()
    for tensor, source, dtype in _regions(models, bool(checkpoint.config.tie_word_embeddings)):
        whole = (tensor, replace(source, part=""))
        if whole not in seen:
            seen.add(whole)
            values[source.packing, ir.DataType.FLOAT if source.packing else dtype] += prod(
                checkpoint.tensors[tensor].shape
            )
    with tempfile.TemporaryDirectory(dir=directory, prefix=".plan-") as folder:
        root = Path(folder)
        rows = torch.randn(PIECE_VALUES // SAMPLE_WIDTH, SAMPLE_WIDTH).to(torch.bfloat16)
        save_file({"sample": rows}, root / SINGLE)
        sample = Checkpoint(root, "sample", "local", checkpoint.config)
        seconds = sum(count / PIECE_VALUES * _time_piece(sample, *kind) for kind, count in values.items())
    return seconds / WORKERS


def estimate_hashing(count: int) -> float:
    """Seconds to take the sha256 of that many bytes."""
    start = time.perf_counter()
    hashlib.sha256(bytes(HASHED))
    return count / HASHED * (time.perf_counter() - start)


def _regions(models: Sequence[ir.Model], tied: bool) -> dict[ArrayKey, Destination]:
    """Each weight once, with the room it takes."""
    found: dict[ArrayKey, Destination] = {}
    for model in models:
        for value in weight_inputs(fold_transforms(model)):
            assert value.dtype is not None
            region = Destination(-1, 0, shape_of(value), value.dtype, is_transposed(source_of(value)))
            found.setdefault(key_of(value, tied), region)
    return found


def _time_piece(sample: Checkpoint, packing: Packing | None, dtype: ir.DataType) -> float:
    """Seconds that one piece takes from the checkpoint to the disk."""
    shape = sample.tensors["sample"].shape
    parts = (
        {"": (shape, dtype)}
        if packing is None
        else {name: (part.shape, part.dtype) for name, part in packing.parts(*shape).items()}
    )
    source = Source("sample", (), packing)
    with (sample.root / "out").open("wb") as file:
        for offset in (0, 4 * PIECE_VALUES):  # the first finds its buffers, which a build does once
            regions = {
                name: Destination(file.fileno(), offset, wanted, of, is_transposed(replace(source, part=name)))
                for name, (wanted, of) in parts.items()
            }
            start = time.perf_counter()
            stream_piece(sample, "sample", source, regions, slice(0, shape[0]), lambda _: None)
        return time.perf_counter() - start
