"""The data files of a family of graphs: where each array lies, and the files while they are written.

`<stem>.onnx_data`, then `<stem>.onnx_data_1`, `_2`, … where no file may be longer than a limit; an array never spans
two. Places are arithmetic (`Layout`), known before the first byte is written. Knows names and offsets; nothing about
what arrays hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from ...artifact import data_name
from ..checkpoint import checkpoint_name
from .inputs import Source, shape_of, source_of
from .journal import Journal
from .stream import Region

ALIGNMENT = 4096  # so that a runtime can map a tensor straight from the file

Key = tuple[str, Source, ir.DataType]  # a tensor of the checkpoint and what is stored of it: equal keys share bytes
Place = tuple[str, int, int]  # file, offset, bytes


@dataclass
class Layout:
    """Where arrays lie in the files of one stem.

    Attributes:
        limit: bytes that no file should exceed; an array longer than that has a file of its own.
        lender: files of another stem: what lies there is read from there instead of being stored again.
        ends: length of each file so far.
        placed: place of every array that has one here.
        borrowed: the lender's files that are read.
    """

    stem: str
    limit: int | None = None
    lender: Layout | None = None
    ends: list[int] = field(default_factory=lambda: [0])
    placed: dict[Key, Place] = field(default_factory=dict)
    borrowed: list[str] = field(default_factory=list)

    def add(self, arrays: Mapping[Key, int]) -> list[Key]:
        """Give room to each array (key and bytes) that lies neither here nor at the lender; returns those."""
        known = {*self.placed, *(self.lender.placed if self.lender is not None else ())}
        new = [key for key in arrays if key not in known]
        for key in new:
            self.placed[key] = self._take(arrays[key])
        if self.lender is not None:
            read = [self.lender.placed[key][0] for key in arrays if key in self.lender.placed]
            self.borrowed = list(dict.fromkeys([*self.borrowed, *read]))
        return new

    def find(self, key: Key) -> Place:
        """Where an array lies: here, or at the lender."""
        if key in self.placed:
            return self.placed[key]
        assert self.lender is not None
        return self.lender.placed[key]

    def _take(self, length: int) -> Place:
        offset = aligned(self.ends[-1])
        if self.limit is not None and offset and offset + length > self.limit:
            self.ends.append(0)
            offset = 0
        self.ends[-1] = offset + length
        return data_name(self.stem, len(self.ends) - 1), offset, length

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file of its own, by name."""
        return {data_name(self.stem, index): end for index, end in enumerate(self.ends)}

    @property
    def names(self) -> list[str]:
        """Every file that graphs of this stem read."""
        return [*self.files, *self.borrowed]


@dataclass
class WeightFile:
    """The data files of one stem being written.

    Attributes:
        directory: where they lie.
        journal: what an interrupted build has written of them, and where complete tensors are noted; or None.
        errors: parameter -> relative L2 error of its quantized values.
    """

    directory: Path
    layout: Layout
    journal: Journal | None = None
    errors: dict[str, float] = field(default_factory=dict)
    _descriptors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, stem: str) -> WeightFile:
        """One file without limit, beside nothing."""
        return cls(directory, Layout(stem))

    def __enter__(self) -> WeightFile:
        self._descriptor(data_name(self.layout.stem, 0))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        for name, descriptor in self._descriptors.items():
            if kind is None:
                _set_length(descriptor, self.layout.files[name])
            os.close(descriptor)

    def region(self, value: ir.Value, place: Place) -> Region:
        """The room of a weight input, ready to be written to."""
        assert value.dtype is not None
        name, offset, length = place
        descriptor = self._descriptor(name)
        if os.fstat(descriptor).st_size < offset + length:
            os.ftruncate(descriptor, offset + length)
        return Region(descriptor, offset, shape_of(value), value.dtype, in_columns(source_of(value)), name)

    def _descriptor(self, name: str) -> int:
        """An open file. What the journal does not know of is cut off."""
        if name not in self._descriptors:
            self._descriptors[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o644)
            _set_length(self._descriptors[name], self.journal.end(name) if self.journal is not None else 0)
        return self._descriptors[name]


def _set_length(descriptor: int, length: int) -> None:
    """Cut or extend a file that has another length. Cutting an empty one would have ext4 write all of it to the disk on
    closing, which it takes for a replaced file."""
    if os.fstat(descriptor).st_size != length:
        os.ftruncate(descriptor, length)


def aligned(offset: int) -> int:
    """The next offset at which a weight may start."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def key_of(value: ir.Value, tied: bool) -> Key:
    """What the bytes of a weight input are."""
    assert value.dtype is not None
    source = source_of(value)
    tensor = checkpoint_name(source.parameter, tied)
    return tensor, replace(source, parameter=tensor), value.dtype


def bytes_of(value: ir.Value) -> int:
    """Bytes of a weight input."""
    assert value.dtype is not None
    return Region(-1, 0, shape_of(value), value.dtype).length


def in_columns(source: Source) -> bool:
    """Whether the rows of the checkpoint's tensor are columns of the array."""
    return source.packing is not None and source.part in source.packing.columns
