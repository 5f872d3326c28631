"""Describes an artifact or an ONNX file: inputs, outputs, operators, sizes, dtypes and build stages.

Reads graphs without their weights, so a file of any size opens at once. Does not check whether the files are intact;
`verify` does. Needs onnx (the `export` extra).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import open_artifact
from ..contract import DECODER, EMBED_TOKENS, EMBEDDINGS, VISION_ENCODER
from ..errors import ArtifactError
from ..manifest import Manifest
from ..runtime.external import check_external_data

if TYPE_CHECKING:
    import onnx

_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}  # ONNX's names that numpy does not use
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; a dim is a number, a name, or `?` if the graph leaves it open."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Weights:
    """All initializers of one dtype."""

    count: int
    bytes: int


@dataclass(frozen=True)
class GraphReport:
    """One ONNX file."""

    file: str
    bytes: int  # of the graph's file
    data: Mapping[str, int]  # external data file -> bytes, -1 if it is missing
    opset: Mapping[str, int]  # domain -> version
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ops: Mapping[str, int]  # operator -> nodes, those of subgraphs and local functions included
    weights: Mapping[str, Weights]  # by dtype
    stages: Sequence[Any] = ()  # the build stages in the manifest


@dataclass(frozen=True)
class Inspection:
    """What `inspect` prints: the graphs, and the manifest if the path is an artifact."""

    path: str
    graphs: tuple[GraphReport, ...]
    manifest: Manifest | None = field(default=None, repr=False)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def inspect_path(path: Path) -> Inspection:
    """Inspect an artifact directory or one `.onnx` file.

    Raises:
        ArtifactError: the path is neither, or a graph cannot be read.
    """
    if path.is_dir():
        artifact = open_artifact(path, check=False)
        reports: dict[Path, GraphReport] = {}  # by file, because precisions may share a graph
        for precision in artifact.every_precision:
            for name, entry in sorted(precision.manifest.graphs.items(), key=lambda item: _reading_order(item[0])):
                file = precision.graph_path(name)
                if file not in reports:
                    check_external_data(file, path, artifact.manifest.files)
                    reports[file] = inspect_graph(file, stages=entry.get("stages", ()), root=path)
        return Inspection(str(path), tuple(reports.values()), artifact.manifest)
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or directory", "Name an artifact directory or an .onnx file")
    return Inspection(str(path), (inspect_graph(path),))


def _reading_order(name: str) -> tuple[int, str]:
    """Sort key: graphs in the order of the data flow, from vision to decoder."""
    flow = (VISION_ENCODER, EMBED_TOKENS, EMBEDDINGS, DECODER)
    return next((place for place, stem in enumerate(flow) if name.startswith(stem)), len(flow)), name


def inspect_graph(path: Path, stages: Sequence[Any] = (), root: Path | None = None) -> GraphReport:
    """Inspect one `.onnx` file; file names are reported relative to `root`.

    Raises:
        ArtifactError: the file is missing or not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", "Name an artifact directory or an .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{path}: not an ONNX model", "Name an artifact directory or an .onnx file") from None
    if not model.HasField("graph") or not model.opset_import:
        raise ArtifactError(f"{path}: not an ONNX model", "Name an artifact directory or an .onnx file")
    root = root or path.parent
    initializers = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    names = sorted({entry.value for t in initializers for entry in t.external_data if entry.key == "location"})
    files = [path.parent / name for name in names]
    initialized = {tensor.name for tensor in model.graph.initializer}
    return GraphReport(
        file=_relative(path, root),
        bytes=path.stat().st_size,
        data={_relative(file, root): file.stat().st_size if file.is_file() else -1 for file in files},
        opset={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        inputs=tuple(_port(value) for value in model.graph.input if value.name not in initialized),
        outputs=tuple(_port(value) for value in model.graph.output),
        ops=dict(Counter(_operators(model)).most_common()),
        weights=_weights(initializers),
        stages=stages,
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside it, such as the branches of an If."""
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    for function in model.functions:
        nodes += function.node
        inner = [graph for node in function.node for graph in _inner(node)]
        nodes += [node for outer in inner for graph in _graphs(outer) for node in graph.node]
    for node in nodes:
        yield f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return Port(value.name, _dtype(tensor.elem_type), shape)


def _dtype(number: int) -> str:
    from onnx import TensorProto

    name: str = TensorProto.DataType.Name(number)
    return _NAMES.get(name, name.lower())


def _weights(initializers: Sequence[onnx.TensorProto]) -> dict[str, Weights]:
    from onnx import TensorProto, helper

    by_dtype: dict[str, Weights] = {}
    for tensor in initializers:
        name = _dtype(tensor.data_type)
        bits = (
            _BITS.get(TensorProto.DataType.Name(tensor.data_type))
            or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        )
        size = math.ceil(math.prod(tensor.dims) * bits / 8)
        before = by_dtype.get(name, Weights(0, 0))
        by_dtype[name] = Weights(before.count + 1, before.bytes + size)
    return dict(sorted(by_dtype.items(), key=lambda item: -item[1].bytes))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
