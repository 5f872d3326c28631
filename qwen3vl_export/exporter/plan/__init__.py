"""The plan of a build: its files, their bytes, its memory and its time, before a weight is read.

Weights are counted to the byte, on the finished skeletons, as `weights/` will place them; the graphs grow by a few
kilobytes when the locations of their weights are added. Time and memory are estimates: one slice of random numbers per
kind of weight goes through the real writer, on the disk that will be written to, and is scaled up. Tracing is done for
the plan anyway, and measured.
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

from ... import contract
from ...errors import SpaceError
from ...packaging import storage_rules
from ...packaging.package import StorageRules
from ...promise import GRAPH_DIR, has_two_decoders, second_decoder
from ...recipe.model import Recipe
from ...replaceable import check_output
from ..checkpoint import Checkpoint
from ..checkpoint.files import SINGLE
from ..checkpoint.names import members_of
from ..settings import check_settings
from ..skeletons import Log, Skeleton, build_skeletons, inputs_of, open_recipe_checkpoint, recipe_for, sort_for_writing
from ..weights import WORKERS, ArrayKey, FilePlacement, key_of
from ..weights.inputs import Source, fold_transforms, shape_of, source_of, weight_inputs
from ..weights.packing import Packing
from ..weights.quantized_rows import QuantizedPacking
from ..weights.stream import PIECE_VALUES, STRIP_VALUES, Destination, rows_per_read, split_pieces, stream_piece

SAMPLE_WIDTH = 2048  # values in a row of the timed piece
HASHED_BYTES = 32 << 20  # whose checksum is timed
STRIP_COPIES = 10  # float32 copies of a strip in memory while it is quantized


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written, and its bytes by dtype; the rest of its bytes are graph, settings or alignment."""

    name: str
    bytes: int
    dtypes: Mapping[str, int]

    @property
    def weights(self) -> int:
        """Bytes of weights."""
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class BuildPlan:
    """What a build will write, and the resources it will take.

    Attributes:
        files: every file but the manifest and the settings of packaged runtimes, some kilobytes.
        free: bytes free on the disk they go to.
        memory: estimated peak of resident memory in bytes.
        seconds: estimated duration of each part of the build.
    """

    files: tuple[PlannedFile, ...]
    free: int
    memory: int
    seconds: Mapping[str, float]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


def plan_build(
    recipe: Recipe,
    *,
    checkpoint: str | None = None,
    adapters: Sequence[str] = (),
    out: Path | None = None,
    log: Log = print,
) -> BuildPlan:
    """Plan what `build` would do with the same arguments.

    Leaves no file behind, and reads no weight but a tied head that is stored beside its table, and no scale but those
    of a quantized checkpoint that a float16 graph may not hold.

    Raises:
        Qwen3VLExportError: as `build`, except that neither a disk with too little space nor an artifact at `out` is an
            error.
    """
    out = out or Path("artifacts") / recipe.name
    check_output(out, force=True, inputs=inputs_of(recipe, checkpoint, adapters))
    start = time.perf_counter()
    opened = open_recipe_checkpoint(recipe, checkpoint, adapters)
    recipe = recipe_for(recipe, opened, log)
    check_settings(opened, recipe, log)
    skeletons = build_skeletons(recipe, opened, log)
    traced = time.perf_counter()
    files = planned_files(skeletons, opened, storage_rules(recipe.packaging.runtimes))
    if has_two_decoders(recipe.to_json_dict()):
        graphs = [file for file in files if file.name.endswith(".onnx")]
        files += [replace(file, name=second_decoder(file.name)) for file in graphs if contract.DECODER in file.name]
    models = [skeleton.model for skeleton in skeletons]
    directory = next(path for path in out.absolute().parents if path.is_dir())
    hashed_bytes = sum(file.bytes for file in files) + sum(path.stat().st_size for path in opened.files)
    return BuildPlan(
        files=tuple(files),
        free=check_space(directory, 0),
        memory=estimate_memory(models, opened),
        seconds={
            "tracing": traced - start,
            "weights": estimate_writing(models, opened, directory),
            "checksums": estimate_hashing(hashed_bytes),
        },
    )


def planned_files(skeletons: Sequence[Skeleton], checkpoint: Checkpoint, rules: StorageRules) -> list[PlannedFile]:
    """Every file that skeletons become, and the checkpoint's settings."""
    tied = checkpoint.tied
    placements = file_placements(skeletons, rules)
    files = []
    for skeleton in sort_for_writing(skeletons):
        lengths = {key: region.length for key, region in _weight_regions([skeleton.model], tied).items()}
        placements[skeleton.data_stem].add(lengths)
        size = len(ir.to_proto(skeleton.model).SerializeToString())
        files.append(PlannedFile(f"{GRAPH_DIR}/{skeleton.name}.onnx", size, {}))
    files += [file for placement in placements.values() for file in planned_weight_files(placement)]
    sizes = {name: len(content) for name, content in checkpoint.settings.files.items()}
    sizes |= {path.name: path.stat().st_size for path in checkpoint.licences}
    return files + [PlannedFile(name, size, {}) for name, size in sizes.items()]


def file_placements(skeletons: Sequence[Skeleton], rules: StorageRules) -> dict[str, FilePlacement]:
    """Where the weights of graphs will be stored, by stem, before any is placed.

    The decoder reads a tied output head from the token table's files if it is stored in the same way there, unless a
    runtime would not find it.
    """
    stems = [skeleton.data_stem for skeleton in skeletons]
    placements = {stem: FilePlacement(stem, rules.largest_file) for stem in stems}
    for skeleton in skeletons:
        if skeleton.lender is not None:
            placements[skeleton.data_stem].lender = placements[skeleton.lender]
    return placements


def planned_weight_files(placement: FilePlacement) -> list[PlannedFile]:
    """The data files of one stem; a tensor that several graphs read is stored once."""
    dtypes: dict[str, Counter[str]] = {name: Counter() for name in placement.file_sizes}
    for key, (name, _, length) in placement.ranges.items():
        dtypes[name][key[2].name.lower()] += length
    return [
        PlannedFile(f"{GRAPH_DIR}/{name}", length, dict(sorted(dtypes[name].items())))
        for name, length in placement.file_sizes.items()
    ]


def check_space(directory: Path, needed: int) -> int:
    """Bytes free on the disk of `directory`, which need not exist yet.

    Raises:
        SpaceError: fewer than `needed`.
    """
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SpaceError(
            f"{existing}: the artifact takes {needed:,} bytes, {free:,} are free",
            "Free some space, or choose another --out",
        )
    return free


def estimate_memory(models: Sequence[ir.Model], checkpoint: Checkpoint) -> int:
    """Peak resident memory in bytes: what tracing took so far, and the strips and columns in flight."""
    tied = checkpoint.tied
    largest = 0
    for (tensor, source, _), region in _weight_regions(models, tied).items():
        for shape in (checkpoint.tensors[member].shape for member in members_of(tensor)):
            rows = 4 * rows_per_read(shape, source.read_transform) * prod(shape[1:])
            cuts = split_pieces(shape, source.read_transform) if region.transposed else []
            columns = max((cut.stop - cut.start for cut in cuts), default=0)
            largest = max(largest, rows + columns * region.shape[0] * region.dtype.bitwidth // 8)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    return usage + WORKERS * (largest + 4 * STRIP_COPIES * STRIP_VALUES)


def estimate_writing(models: Sequence[ir.Model], checkpoint: Checkpoint, directory: Path) -> float:
    """Seconds for `WORKERS` to read, transpose, cast or quantize and write every weight.

    Args:
        directory: on the disk the artifact goes to.
    """
    values: Counter[tuple[Packing | None, ir.DataType]] = Counter()
    counted = set()
    for tensor, source, dtype in _weight_regions(models, checkpoint.tied):
        weight = (tensor, replace(source, part=""))
        if weight not in counted:
            counted.add(weight)
            packing = source.packing.blockwise if isinstance(source.packing, QuantizedPacking) else source.packing
            count = sum(prod(checkpoint.tensors[member].shape) for member in members_of(tensor))
            values[packing, ir.DataType.FLOAT if packing else dtype] += count
    with tempfile.TemporaryDirectory(dir=directory, prefix=".plan-") as folder:
        root = Path(folder)
        rows = torch.randn(PIECE_VALUES // SAMPLE_WIDTH, SAMPLE_WIDTH).to(torch.bfloat16)
        save_file({"sample": rows}, root / SINGLE)
        sample = Checkpoint(root, "sample", "local", checkpoint.config)
        seconds = sum(count / PIECE_VALUES * _time_piece(sample, *kind) for kind, count in values.items())
    return seconds / WORKERS


def estimate_hashing(count: int) -> float:
    """Seconds to compute the sha256 of that many bytes."""
    start = time.perf_counter()
    hashlib.sha256(bytes(HASHED_BYTES))
    return count / HASHED_BYTES * (time.perf_counter() - start)


def _weight_regions(models: Sequence[ir.Model], tied: bool) -> dict[ArrayKey, Destination]:
    """Each weight once, with the region of a file it will fill; no file is open yet."""
    regions: dict[ArrayKey, Destination] = {}
    for model in models:
        for value in weight_inputs(fold_transforms(model)):
            assert value.dtype is not None
            region = Destination(-1, 0, shape_of(value), value.dtype, source_of(value).is_transposed)
            regions.setdefault(key_of(value, tied), region)
    return regions


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
        for offset in (0, 4 * PIECE_VALUES):  # the first pass allocates buffers, which a build does once
            regions = {
                name: Destination(
                    file.fileno(), offset, part_shape, part_dtype, replace(source, part=name).is_transposed
                )
                for name, (part_shape, part_dtype) in parts.items()
            }
            start = time.perf_counter()
            stream_piece(sample, "sample", source, regions, slice(0, shape[0]), lambda _: None)
        return time.perf_counter() - start
