"""Where a graph's external data lies, read from the ONNX file without the onnx package.

An ONNX file is a protobuf message; only the few fields on the way to a tensor's `external_data` are followed. A
location must be a plain relative path that stays inside the artifact. Newer versions of onnxruntime check this too,
older ones open whatever is named.

Knows the wire format and paths; nothing about what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..artifact import lies_inside
from ..errors import ArtifactError

# Field numbers of onnx.proto: message -> {field: message it holds}.
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


def check_external_data(path: Path, root: Path) -> None:
    """Refuse a graph that would read outside its directory.

    Args:
        root: of the artifact; its own links into huggingface_hub's cache are followed.

    Raises:
        ArtifactError: a location that is absolute, that leaves the graph's directory (also by a symbolic link), or a
            file that is no ONNX model.
    """
    try:
        locations = external_locations(path.read_bytes())
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"{path}: not an ONNX file ({error})", "Rebuild the artifact") from error
    for location in sorted(locations):
        if Path(location).is_absolute() or not lies_inside(path.parent, location, root):
            raise ArtifactError(f"{path}: its data {location!r} lies outside the artifact", "Do not run this artifact")


def external_locations(model: bytes) -> set[str]:
    """Every `location` the tensors of a serialized ModelProto name."""
    found: set[str] = set()
    pending = [(MODEL, memoryview(model))]
    while pending:
        kind, message = pending.pop()
        if kind == ENTRY:
            entry = {number: bytes(value).decode() for number, value in messages(message)}
            if entry.get(KEY) == "location":
                found.add(entry.get(VALUE, ""))
            continue
        children = CHILDREN[kind]
        pending += [(children[number], value) for number, value in messages(message) if number in children]
    return found


def messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one message: (field number, bytes)."""
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        wire = tag & 7
        if wire == 0:
            _, position = varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, position = varint(data, position)
            if position + length > len(data):
                raise ValueError("a field runs past the end")
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire}")


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
