"""Quantized weights against the checkpoint's, block by block.

What a quantized weight stands for is asked of onnxruntime: the one operator that reads it is run on the identity matrix
(or on every index of a table), so that nothing of the packing is written here a second time. A wrong scale of one block
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
        if node.op_type not in (*PRODUCTS, *TABLES):
            continue
        index = 0 if node.op_type in TABLES else 1
        parameter = node.input[index]
        size = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        restored = table_rows(node, stored, path) if node.op_type in TABLES else product_rows(node, stored, path)
        yield parameter, size or restored.shape[1], restored


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
    node: NodeProto, source: str, kind: int, stored: dict[str, TensorProto], path: Path, scales: str
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs one operator on a value of its input `source`; floats are those of its scales."""
    dtype = stored[scales].data_type if kind == TensorProto.FLOAT else kind
    given = helper.make_tensor_value_info(source, dtype, None)
    made = onnx.ValueInfoProto(name=node.output[0])
    tensors = [stored[name] for name in dict.fromkeys(node.input) if name in stored]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(
        helper.make_graph([node], "one", [given], [made], tensors), opset_imports=opsets, ir_version=10
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(FOLDER, str(path.parent.resolve()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)

    def run(value: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = session.run(None, {source: value.astype(numpy_dtype)})[0]
        return found

    return run
