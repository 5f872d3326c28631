"""Finds the files of a graph's external data, reading the ONNX file without the onnx package.

An ONNX file is a protobuf message (onnx.proto3); only the few fields on the path to a tensor's `external_data` are
parsed. A location must be a plain relative path that stays inside the artifact. Newer versions of onnxruntime check
this too, older ones open any path.

Knows the wire format and paths; nothing about what the tensors hold.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ..artifact import Artifact, lies_inside
from ..errors import ArtifactError

# Field numbers of onnx.proto: message -> {field: type of the message in it}.
MODEL, GRAPH, NODE, ATTRIBUTE, SPARSE, FUNCTION, TENSOR, ENTRY = range(8)
CHILDREN: dict[int, dict[int, int]] = {
    MODEL: {7: GRAPH, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    TENSOR: {13: ENTRY},
    ENTRY: {},
}
KEY, VALUE = 1, 2  # of StringStringEntryProto


def check_graphs(artifact: Artifact) -> None:
    """Refuse an artifact if a graph of any of its precisions reads what does not belong to it.

    Raises:
        ArtifactError: as `check_external_data`.
    """
    graphs = {
        precision.graph_path(name) for precision in artifact.every_precision for name in precision.manifest.graphs
    }
    for path in sorted(graphs):
        check_external_data(path, artifact.root, artifact.manifest.files)


def check_external_data(path: Path, root: Path, listed: Collection[str] = ()) -> None:
    """Refuse a graph that would read outside its artifact.

    Args:
        root: of the artifact; its links into huggingface_hub's cache are followed.
        listed: the only files it may read, relative to `root`; empty allows every one inside.

    Raises:
        ArtifactError: a location that is absolute, leads outside (also through a symbolic link) or is not listed, or a
            file that is missing or not an ONNX model.
    """
    try:
        locations = external_locations(path.read_bytes())
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"{path}: not an ONNX file ({error})", "Rebuild the artifact") from error
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file", "Rebuild the artifact") from None
    for location in sorted(locations):
        where = f"{path}: its data {location!r}"
        if "\0" in location or Path(location).is_absolute() or not lies_inside(path.parent, location, root):
            raise ArtifactError(f"{where} is outside the artifact", "Do not run this artifact")
        if listed and Path(os.path.relpath(path.parent / location, root)).as_posix() not in listed:
            raise ArtifactError(f"{where} is no file of the artifact", "Do not run this artifact")


def external_locations(model: bytes) -> set[str]:
    """Every external-data `location` in a serialized ModelProto."""
    locations: set[str] = set()
    pending = [(MODEL, memoryview(model))]
    while pending:
        kind, message = pending.pop()
        if kind == ENTRY:
            entry = {number: bytes(value).decode() for number, value in read_fields(message)}
            if entry.get(KEY) == "location":
                locations.add(entry.get(VALUE, ""))
            continue
        children = CHILDREN[kind]
        pending += [(children[number], value) for number, value in read_fields(message) if number in children]
    return locations


def read_fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one message: (field number, bytes).

    Raises:
        IndexError, ValueError: not a protobuf message.
    """
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        wire = tag & 7
        if wire == 0:
            _, position = read_varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, position = read_varint(data, position)
            if position + length > len(data):
                raise ValueError("a field runs past the end")
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire}")


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
