"""The weights of one quantized operator in float32, as onnxruntime dequantizes them.

The operator that reads a weight is run on the identity matrix (or on every index of a table, or without input if it
only dequantizes), so that the packing is not implemented a second time here. The identity matrix of a large
`MatMulNBits` takes minutes: there `DequantizeLinear` reads the same bytes, and the operator is run on one column of
each block, which must come out alike.

Knows onnxruntime's operators; nothing about graphs or names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from qwen3vl_export.runtime.arrays import Floats, Ints
from qwen3vl_export.runtime.session import DATA_FOLDER

BLOCK_TYPES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}  # of a `MatMulNBits`' integers, by their bits
DEQUANTIZE = "DequantizeLinear"  # blocks in standard operators
ROWS = 512  # of the identity matrix, and of a weight, at a time: bounds the memory beside the weight
VALUES = 1 << 23  # of a weight that one session dequantizes: it holds them twice, 64 MB


def product_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The weight [N, K] of a product: its output for the identity matrix."""
    product = NodeProto()
    product.CopyFrom(node)
    bias = 5 if node.op_type == "MatMulNBits" else 4
    if len(product.input) > bias:
        product.input[bias] = ""
    for attribute in product.attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 0  # activations are not rounded
    width = number_of(node, "K") or stored[node.input[1]].dims[0]
    run = open_operator(product, node.input[0], TensorProto.FLOAT, stored, path, node.input[2])
    blocks = block_rows(product, stored, path) if node.op_type == "MatMulNBits" else None
    if blocks is not None and agrees(blocks, run, number_of(node, "block_size"), number_of(node, "bits")):
        return blocks
    return columns_of(run, np.arange(width), width)


def columns_of(run: Callable[[NDArray[Any]], NDArray[Any]], columns: Ints, width: int) -> Floats:
    """Columns [N, C] of the weight of a product, by their numbers: its output for these rows of the identity matrix."""
    weight: Floats = np.empty((0, 0), np.float32)
    for start in range(0, len(columns), ROWS):
        part = columns[start : start + ROWS]
        rows = np.zeros((len(part), width), np.float32)
        rows[np.arange(len(part)), part] = 1
        output = run(rows)
        if not start:
            weight = np.empty((output.shape[1], len(columns)), np.float32)
        weight[:, start : start + len(part)] = output.T
    return weight


def block_rows(product: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats | None:
    """The weight [N, K] of a `MatMulNBits` as `DequantizeLinear` reads its bytes, (integer - zero point) x scale; None
    where it holds more than integers, scales and zero points of 4 or 8 bits."""
    names = [name for name in product.input[1:] if name]
    bits, size, width = (number_of(product, name) for name in ("bits", "block_size", "K"))
    points = stored[names[2]] if len(names) == 3 else None
    if bits not in BLOCK_TYPES or len(names) > 3 or (points is not None and points.data_type != TensorProto.UINT8):
        return None
    kind, rows = BLOCK_TYPES[bits], number_of(product, "N")
    blocks = -(-width // size)
    zero_points = np.full((rows, blocks), 1 << bits - 1, np.uint8)
    if points is not None:
        octets = stored_array(points, path).reshape(rows, -1)
        integers = octets if bits == 8 else np.stack([octets & 15, octets >> 4], -1).reshape(rows, -1)
        zero_points = integers[:, :blocks]
    node = helper.make_node(DEQUANTIZE, ["codes", "scales", "zero_points"], ["y"], axis=0)
    weight: Floats = np.empty((rows, width), np.float32)
    for part in slices(rows, max(1, VALUES // width)):
        count = (part.stop - part.start) * blocks
        tensors = {
            "codes": stored_rows(stored[names[0]], rows, part, kind, [count, size]),
            "scales": stored_rows(stored[names[1]], rows, part, stored[names[1]].data_type, [count]),
            "zero_points": helper.make_tensor("zero_points", kind, [count], zero_points[part].ravel()),
        }
        for name, tensor in tensors.items():
            tensor.name = name
        weight[part] = dequantized_rows(node, tensors, path).reshape(-1, blocks * size)[:, :width]
    return weight


def slices(count: int, size: int) -> Iterator[slice]:
    """`count` rows, `size` at a time."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def stored_array(tensor: TensorProto, path: Path) -> NDArray[Any]:
    """The values of a tensor of a graph at `path`, not copied from its data file. onnx's own reader refuses a file that
    has several hard links, as copies in some stores have; onnxruntime does not."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    data = ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(path.parent / data.location, dtype, "r", data.offset or 0, tuple(tensor.dims))


def stored_rows(tensor: TensorProto, rows: int, part: slice, kind: int, dims: Sequence[int]) -> TensorProto:
    """The bytes of some of a tensor's rows, as a tensor of another type and shape."""
    view = TensorProto()
    view.CopyFrom(tensor)
    view.data_type = kind
    view.dims[:] = dims
    if tensor.data_location != TensorProto.EXTERNAL:
        data = numpy_helper.to_array(tensor).reshape(rows, -1)[part]
        view.raw_data = np.ascontiguousarray(data).tobytes()
        return view
    whole = ExternalDataInfo(tensor)
    length = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize // rows
    offset = (whole.offset or 0) + part.start * length
    view.ClearField("external_data")
    places = {"location": whole.location, "offset": offset, "length": (part.stop - part.start) * length}
    for key, value in places.items():
        view.external_data.add(key=key, value=str(value))
    return view


def agrees(weight: Floats, run: Callable[[NDArray[Any]], NDArray[Any]], size: int, bits: int) -> bool:
    """Whether a product computes with a weight [N, K]: compared at one column of each block, another place in each, up
    to the rounding of (integer - zero point) x scale."""
    width = weight.shape[1]
    starts = np.arange(0, width, size)
    columns = np.minimum(starts + np.arange(len(starts)) % size, width - 1)
    differences = np.abs(columns_of(run, columns, width) - weight[:, columns])
    rounding = 2**bits * np.finfo(np.float32).eps
    for part in slices(len(weight), ROWS):
        largest = np.maximum.reduceat(np.abs(weight[part]), starts, axis=1)
        if not (differences[part] <= rounding * largest).all():
            return False
    return True


def table_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The rows [N, K] of a table: every index looked up."""
    run = open_operator(node, node.input[1], TensorProto.INT64, stored, path, node.input[2])
    return run(np.arange(stored[node.input[0]].dims[0])).astype(np.float32, copy=False)


def dequantized_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The output of a node whose inputs are all stored."""
    run = open_operator(node, None, TensorProto.FLOAT, stored, path, node.input[1])
    return run(np.empty(0)).astype(np.float32, copy=False)


def open_operator(
    node: NodeProto, source: str | None, kind: int, stored: dict[str, TensorProto], path: Path, scales: str
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs one operator on a value of its input `source`, if any; its floats have the scales' dtype."""
    dtype = stored[scales].data_type if kind == TensorProto.FLOAT else kind
    inputs = [] if source is None else [helper.make_tensor_value_info(source, dtype, None)]
    output = onnx.ValueInfoProto(name=node.output[0])
    tensors = [stored[name] for name in dict.fromkeys(node.input) if name in stored]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(
        helper.make_graph([node], "operator", inputs, [output], tensors), opset_imports=opsets, ir_version=10
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else constants are folded: a copy
    options.add_session_config_entry(DATA_FOLDER, str(path.parent.resolve()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)

    def run(value: NDArray[Any]) -> NDArray[Any]:
        feeds = {} if source is None else {source: value.astype(numpy_dtype)}
        result: NDArray[Any] = session.run(None, feeds)[0]
        return result

    return run


def number_of(node: NodeProto, name: str) -> int:
    """An attribute of a node, 0 without it."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)
