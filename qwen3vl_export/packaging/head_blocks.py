"""A quantized output head as several products, each of a block of its rows, over the same bytes.

WebAssembly has no kernel for integers as they are stored: its `MatMulNBits` restores the whole weight in float32 for
every call, in one allocation (`ComputeBUnpacked` in onnxruntime's `matmul_nbits.cc`). A head of 151,936 tokens takes
1.2 GB of it at 2B, of 4 for everything; the largest product of a layer takes 0.1. In blocks, one block is restored at a
time. Results are the same: each row of the weight makes one column.

Knows ONNX files; imports onnx only when there is a head to split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..artifact import block_name
from ..contract import LOGITS

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

LARGEST_RESTORED = 1 << 28  # bytes in float32; more blocks would save little, and threads wait at the end of each
FLOAT_BYTES = 4
ROWS_STEP = 128  # kernels compute columns in groups: blocks of whole groups give what the whole head gives


def split_head(graph: GraphProto, largest: int = LARGEST_RESTORED) -> None:
    """Replace the `MatMulNBits` that makes the logits by one for each block of rows, and a `Concat` of their results.

    Changes nothing if another operator makes them, or if the whole head fits.

    Args:
        graph: with its weights in external data.
        largest: bytes that a block may take in float32.
    """
    head = quantized_head(graph)
    if head is None:
        return
    sizes = {attribute.name: attribute.i for attribute in head.attribute}
    count, row = sizes["N"], FLOAT_BYTES * sizes["K"]
    step = max(1, largest // (row * ROWS_STEP)) * ROWS_STEP
    if count <= step:
        return
    from onnx import helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    parts = [stored[name] for name in head.input[1:] if name]
    place = list(graph.node).index(head)
    products = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        products.append(block_product(head, start, stop))
        graph.initializer.extend(block_rows(part, count, start, stop) for part in parts)
    for part in parts:
        graph.initializer.remove(part)
    joined = helper.make_node("Concat", [product.output[0] for product in products], head.output, head.name, axis=-1)
    graph.node.remove(head)
    for node in (joined, *reversed(products)):
        graph.node.insert(place, node)


def quantized_head(graph: GraphProto) -> NodeProto | None:
    """The `MatMulNBits` whose result is the logits, a guard's reshape aside; None if there is none."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(LOGITS)
    while node is not None and node.op_type == "Reshape":
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "MatMulNBits" else None


def block_product(head: NodeProto, start: int, stop: int) -> NodeProto:
    """The product with rows `start` to `stop` of the head's weight."""
    from onnx import NodeProto

    product = NodeProto()
    product.CopyFrom(head)
    product.name, product.output[0] = (block_name(name, start, stop) for name in (head.name, head.output[0]))
    product.input[1:] = [name and block_name(name, start, stop) for name in head.input[1:]]
    for attribute in product.attribute:
        if attribute.name == "N":
            attribute.i = stop - start
    return product


def block_rows(tensor: TensorProto, count: int, start: int, stop: int) -> TensorProto:
    """Rows `start` to `stop` of a tensor of `count` rows: part of its bytes, in the same file."""
    from onnx import TensorProto
    from onnx.external_data_helper import ExternalDataInfo

    place = ExternalDataInfo(tensor)
    assert place.length is not None
    row = place.length // count
    part = {
        "location": place.location,
        "offset": (place.offset or 0) + start * row,
        "length": (stop - start) * row,
    }
    block = TensorProto(
        name=block_name(tensor.name, start, stop),
        data_type=tensor.data_type,
        data_location=TensorProto.EXTERNAL,
        dims=[tensor.dims[0] // count * (stop - start), *tensor.dims[1:]],
    )
    for key, value in part.items():
        block.external_data.add(key=key, value=str(value))
    return block
