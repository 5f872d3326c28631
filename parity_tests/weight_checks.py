"""Quantized weights against the checkpoint's, block by block.

What a quantized weight stands for is asked of onnxruntime: the one operator that reads it is run on the identity matrix
(or on every index of a table, or as it stands if it only restores the weight), so that nothing of the packing is
written here a second time. A wrong scale of one block
hides in logits, which rounding moves anyway; against the weight it is off by as much as it is wrong.

Knows operators and parameters' names; nothing about cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from qwen3vl_export.contract import VISION_ENCODER

from .bench import Bench, Floats
from .measures import nmse
from .outcome import Finding
from .probe import FOLDER, module_of

STAGE = "weights"
PRODUCTS = ("MatMulNBits", "DynamicQuantizeMatMul")
TABLES = ("GatherBlockQuantized",)
RESTORED = "DequantizeLinear"  # blocks in standard operators
INTEGERS = "MatMulInteger"  # one scale a column, in standard operators; the scales are multiplied in after it
ROWS = 512  # of the identity matrix at a time: bounds the memory to 512 rows of a product


def weights_of(graph: str) -> Callable[[Bench], Finding]:
    """The check of one graph."""
    return partial(weights, graph)


def weights(graph: str, bench: Bench) -> Finding:
    """Every quantized weight of a graph against the checkpoint's.

    `worst_block_error` is the largest difference in a block over the block's largest weight.
    """
    encoder = bench.artifact.manifest.encoders[0].graph  # all encoders read one file
    path = bench.artifact.graph_path(encoder if graph == VISION_ENCODER else graph)
    known = {module_of(f"{name}.weight"): module for name, module in bench.reference.model.named_modules()}
    worst, where, compared, errors = 0.0, "", 0, []
    for parameter, block, restored in restored_weights(path):
        truth = known[module_of(parameter)].weight.detach().numpy()
        truth = truth.reshape(truth.shape[0], -1)
        each = block_errors(restored, truth, block)
        errors.append(nmse(restored, truth) or 0.0)
        compared += truth.size
        if not each.max() <= worst:  # NaN is worse than anything
            row, column = np.unravel_index(int(np.nan_to_num(each, nan=np.inf).argmax()), each.shape)
            worst, where = float(each.max()), f"worst in {parameter}, row {row}, block {column}"
    return Finding(
        {"worst_block_error": worst if compared else None, "nmse": max(errors, default=None)}, compared, where
    )


def block_errors(restored: Floats, truth: Floats, block: int) -> Floats:
    """[N, blocks]: largest difference over largest weight, inf where only the weight is zero."""
    count, width = truth.shape
    pad = [(0, 0), (0, -width % block)]
    difference, size = (
        np.abs(np.pad(array, pad)).reshape(count, -1, block).max(-1) for array in (restored - truth, truth)
    )
    return np.divide(difference, size, out=np.where(difference > 0, np.inf, 0.0), where=size > 0)


def restored_weights(path: Path) -> Iterator[tuple[str, int, Floats]]:
    """Parameter, block size and float32 rows [N, K] of every quantized weight of a graph."""
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        size = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        if node.op_type in TABLES:
            parameter, restored = node.input[0], table_rows(node, stored, path)
        elif node.op_type in PRODUCTS:
            parameter, restored = node.input[1], product_rows(node, stored, path)
        elif node.op_type == RESTORED and node.input[0] in stored:
            parameter, restored = node.input[0], restored_rows(node, stored, path)
        elif node.op_type == INTEGERS and node.input[1] in stored:
            parameter, scales = node.input[1], scales_after(node, model, stored)
            columns = helper.make_node(RESTORED, [parameter, scales], ["y"], axis=1)
            restored = restored_rows(columns, stored, path).T
        else:
            continue
        yield parameter, size or restored.shape[1], restored


def scales_after(product: NodeProto, model: ModelProto, stored: dict[str, TensorProto]) -> str:
    """The stored scales that a `MatMulInteger` is multiplied with: Cast, then Mul by (the input's scale x these)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    floats = readers[product.output[0]]
    factors = [name for name in readers[floats.output[0]].input if name != floats.output[0]]
    return next(name for factor in factors for name in (factor, *makers[factor].input) if name in stored)


def restored_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The weight as a node without any other input restores it."""
    found = session_of(node, None, TensorProto.FLOAT, stored, path, node.input[1])
    return found(np.empty(0)).astype(np.float32)


def product_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The weight [N, K] of a product: the identity matrix through it."""
    alone = NodeProto()
    alone.CopyFrom(node)
    bias = 5 if node.op_type == "MatMulNBits" else 4
    if len(alone.input) > bias:
        alone.input[bias] = ""
    for attribute in alone.attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 0  # activations as they are
    width = (
        next((attribute.i for attribute in node.attribute if attribute.name == "K"), 0) or stored[node.input[1]].dims[0]
    )
    run = session_of(alone, node.input[0], TensorProto.FLOAT, stored, path, node.input[2])
    parts = [run(np.eye(min(ROWS, width - start), width, start, dtype=np.float32)) for start in range(0, width, ROWS)]
    return np.concatenate(parts).T.astype(np.float32)


def table_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The rows [N, K] of a table: every index looked up."""
    run = session_of(node, node.input[1], TensorProto.INT64, stored, path, node.input[2])
    return run(np.arange(stored[node.input[0]].dims[0])).astype(np.float32)


def session_of(
    node: NodeProto, source: str | None, kind: int, stored: dict[str, TensorProto], path: Path, scales: str
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs one operator on a value of its input `source` if any; floats are those of its scales."""
    dtype = stored[scales].data_type if kind == TensorProto.FLOAT else kind
    given = [] if source is None else [helper.make_tensor_value_info(source, dtype, None)]
    made = onnx.ValueInfoProto(name=node.output[0])
    tensors = [stored[name] for name in dict.fromkeys(node.input) if name in stored]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(
        helper.make_graph([node], "one", given, [made], tensors), opset_imports=opsets, ir_version=10
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(FOLDER, str(path.parent.resolve()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)

    def run(value: NDArray[Any]) -> NDArray[Any]:
        feeds = {} if source is None else {source: value.astype(numpy_dtype)}
        found: NDArray[Any] = session.run(None, feeds)[0]
        return found

    return run
