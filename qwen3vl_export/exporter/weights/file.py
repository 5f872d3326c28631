"""The data files of a family of graphs: where each array is stored, and the files while they are written.

`<stem>.onnx_data`, then `<stem>.onnx_data_1`, `_2`, … where files have a size limit; an array never spans two files.
Offsets are computed (`FilePlacement`) before the first byte is written. Knows names and offsets; nothing about what
arrays hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from ...artifact import data_name
from ..checkpoint.names import checkpoint_name
from .inputs import Source, shape_of, source_of
from .journal import FileRange, Journal
from .stream import Destination

ALIGNMENT = 4096  # so that a runtime can map a tensor straight from the file

ArrayKey = tuple[str, Source, ir.DataType]  # a checkpoint's tensor and how it is stored: equal keys share their bytes


@dataclass
class FilePlacement:
    """Where arrays are stored in the files of one stem.

    Attributes:
        limit: bytes that no file should exceed; a larger array gets a file of its own.
        lender: placement of another stem: arrays stored there are read from there and not stored again.
        ends: length of each file so far, bytes.
        ranges: where each array of this stem is stored.
        borrowed_files: the lender's files that are read.
    """

    stem: str
    limit: int | None = None
    lender: FilePlacement | None = None
    ends: list[int] = field(default_factory=lambda: [0])
    ranges: dict[ArrayKey, FileRange] = field(default_factory=dict)
    borrowed_files: list[str] = field(default_factory=list)

    def add(self, arrays: Mapping[ArrayKey, int]) -> list[ArrayKey]:
        """Place each array that neither this stem nor its lender stores yet.

        Args:
            arrays: key -> bytes.

        Returns:
            The keys that were placed.
        """
        known = {*self.ranges, *(self.lender.ranges if self.lender is not None else ())}
        new = [key for key in arrays if key not in known]
        for key in new:
            self.ranges[key] = self._append(arrays[key])
        if self.lender is not None:
            lent = [self.lender.ranges[key][0] for key in arrays if key in self.lender.ranges]
            self.borrowed_files = list(dict.fromkeys([*self.borrowed_files, *lent]))
        return new

    def find(self, key: ArrayKey) -> FileRange:
        """Where an array is stored: by this stem, or by its lender."""
        if key in self.ranges:
            return self.ranges[key]
        assert self.lender is not None
        return self.lender.ranges[key]

    def _append(self, length: int) -> FileRange:
        offset = align(self.ends[-1])
        if self.limit is not None and offset and offset + length > self.limit:
            self.ends.append(0)
            offset = 0
        self.ends[-1] = offset + length
        return data_name(self.stem, len(self.ends) - 1), offset, length

    @property
    def file_sizes(self) -> dict[str, int]:
        """Bytes of each file of this stem, by name."""
        return {data_name(self.stem, index): end for index, end in enumerate(self.ends)}

    @property
    def file_names(self) -> list[str]:
        """Every file that graphs of this stem read, the lender's included."""
        return [*self.file_sizes, *self.borrowed_files]


@dataclass
class WeightFile:
    """The data files of one stem being written.

    Attributes:
        directory: where the files are created.
        journal: the complete tensors of an interrupted build, to which new ones are added; or None.
        errors: parameter -> relative L2 error of its quantized values.
    """

    directory: Path
    placement: FilePlacement
    journal: Journal | None = None
    errors: dict[str, float] = field(default_factory=dict)
    _descriptors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, stem: str) -> WeightFile:
        """One file without a size limit, lender or journal."""
        return cls(directory, FilePlacement(stem))

    def __enter__(self) -> WeightFile:
        self._descriptor(data_name(self.placement.stem, 0))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        for name, descriptor in self._descriptors.items():
            if kind is None:
                _set_length(descriptor, self.placement.file_sizes[name])
            os.close(descriptor)

    def destination(self, value: ir.Value, file_range: FileRange) -> Destination:
        """Where the bytes of a weight input are written, in a file that is open and long enough."""
        assert value.dtype is not None
        name, offset, length = file_range
        descriptor = self._descriptor(name)
        if os.fstat(descriptor).st_size < offset + length:
            os.ftruncate(descriptor, offset + length)
        return Destination(descriptor, offset, shape_of(value), value.dtype, source_of(value).is_transposed, name)

    def _descriptor(self, name: str) -> int:
        """An open file, truncated to what the journal records."""
        if name not in self._descriptors:
            self._descriptors[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o644)
            _set_length(self._descriptors[name], self.journal.end(name) if self.journal is not None else 0)
        return self._descriptors[name]


def _set_length(descriptor: int, length: int) -> None:
    """Truncate or extend a file that has another length. Truncating an empty file would make ext4 flush it on close, as
    it does for a file that is replaced."""
    if os.fstat(descriptor).st_size != length:
        os.ftruncate(descriptor, length)


def align(offset: int) -> int:
    """The next offset at which an array may start."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def key_of(value: ir.Value, tied: bool) -> ArrayKey:
    """What identifies the bytes of a weight input.

    Args:
        tied: the output head is the token table.
    """
    assert value.dtype is not None
    source = source_of(value)
    tensor = checkpoint_name(source.parameter, tied)
    return tensor, replace(source, parameter=tensor), value.dtype


def size_of(value: ir.Value) -> int:
    """Bytes of a weight input."""
    assert value.dtype is not None
    return Destination(-1, 0, shape_of(value), value.dtype).length
