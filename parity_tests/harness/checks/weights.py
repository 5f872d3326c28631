"""Quantized weights against the checkpoint's, block by block.

onnxruntime dequantizes: the operator that reads a weight is run on the identity matrix (or on every index of a table,
or without input if it only dequantizes), so that the packing is not implemented a second time here. A wrong scale of
one block would not show in the logits, which rounding moves anyway; it shows against the weight.

Knows operators and parameters' names; nothing about cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen3vl_export.contract import VISION_ENCODER
from qwen3vl_export.exporter.weights.packing import DATA, SCALES, ZERO_POINTS
from qwen3vl_export.promise import CALIBRATED, FROM_SOURCE, WEIGHTS
from qwen3vl_export.runtime.arrays import Floats
from qwen3vl_export.runtime.session import DATA_FOLDER

from ..judging.measures import nmse
from ..judging.outcome import Finding
from ..sides.artifact.probe import module_of
from ..sides.bench import Bench

STAGES = (WEIGHTS, CALIBRATED, FROM_SOURCE)
PRODUCTS = ("MatMulNBits", "DynamicQuantizeMatMul")
TABLES = ("GatherBlockQuantized",)
DEQUANTIZE = "DequantizeLinear"  # blocks in standard operators
INTEGER_PRODUCT = "MatMulInteger"  # one scale per column, in standard operators; a Mul applies the scales after it
ROWS = 512  # of the identity matrix, and of a weight that is compared, at a time: bounds the memory beside the weight


def weights_check(graph: str) -> Callable[[Bench], Finding]:
    """The check of one graph."""
    return partial(weights, graph)


def weights(graph: str, bench: Bench) -> Finding:
    """Every quantized weight of a graph against the checkpoint's.

    `worst_block_error` is the largest difference in a block over the block's largest weight.
    """
    encoders = bench.artifact.manifest.encoders  # all of them read one file
    path = bench.artifact.graph_path(encoders[0].graph if graph == VISION_ENCODER else graph)
    names = module_names(bench.reference.model)
    worst, where, compared, errors = 0.0, "", 0, []
    for parameter, block, dequantized in dequantized_weights(path):
        module, attribute = place_of(parameter)
        truth = bench.reference.parameter(f"{names[module]}.{attribute}").reshape(dequantized.shape)
        errors.append(nmse(dequantized, truth) or 0.0)
        compared += truth.size
        for start in range(0, len(truth), ROWS):
            block_error = block_errors(dequantized[start : start + ROWS], truth[start : start + ROWS], block)
            if not block_error.max() <= worst:  # NaN is worse than anything
                row, column = np.unravel_index(int(np.nan_to_num(block_error, nan=np.inf).argmax()), block_error.shape)
                worst, where = float(block_error.max()), f"worst in {parameter}, row {start + row}, block {column}"
    return Finding(
        {"worst_block_error": worst if compared else None, "nmse": max(errors, default=None)}, compared, where
    )


def module_names(model: Any) -> dict[str | None, str]:
    """The names of PyTorch's modules by those that `place_of` gives."""
    return {module_of(f"{name}.weight"): name for name, _ in model.named_modules()}


def place_of(parameter: str) -> tuple[str | None, str]:
    """`language_model.layers.0.mlp.up_proj.weight.quantized` -> `layers.0.mlp.up_proj`, `weight`."""
    module, _, attribute = parameter.removesuffix(f".{DATA}").rpartition(".")
    return module_of(f"{module}.weight"), attribute


def block_errors(dequantized: Floats, truth: Floats, block: int) -> Floats:
    """[N, blocks]: largest difference over largest weight, inf where only the weight is zero."""
    count, width = truth.shape
    pad = [(0, 0), (0, -width % block)]
    difference, size = (
        np.abs(np.pad(array, pad)).reshape(count, -1, block).max(-1) for array in (dequantized - truth, truth)
    )
    errors: Floats = np.divide(difference, size, out=np.where(difference > 0, np.inf, 0.0), where=size > 0)
    return errors


def dequantized_weights(
    path: Path, selected: Callable[[str], bool] = lambda parameter: True
) -> Iterator[tuple[str, int, Floats]]:
    """Parameter, block size and float32 rows [N, K] of every quantized weight of a graph, or of the selected ones."""
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QMoE":
            yield from operator_rows(node, stored, path, selected)
            continue
        if node.op_type == "Loop":
            yield from loop_rows(node, stored, path, selected)
            continue
        source = weight_of(node, stored)
        if source is None or not selected(source):
            continue
        size = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        if node.op_type in TABLES:
            rows = table_rows(node, stored, path)
        elif node.op_type in PRODUCTS:
            rows = product_rows(node, stored, path)
        elif node.op_type == DEQUANTIZE:
            rows = dequantized_rows(node, stored, path)
        else:
            columns = helper.make_node(DEQUANTIZE, [source, scales_after(node, model, stored)], ["y"], axis=1)
            rows = dequantized_rows(columns, stored, path).T
        yield source, size or rows.shape[1], rows


def weight_of(node: NodeProto, stored: dict[str, TensorProto]) -> str | None:
    """The quantized weight that a node reads; None if it reads none."""
    if node.op_type in TABLES or (node.op_type == DEQUANTIZE and node.input[0] in stored):
        return str(node.input[0])
    if node.op_type in PRODUCTS or (node.op_type == INTEGER_PRODUCT and node.input[1] in stored):
        return str(node.input[1])
    return None


def scales_after(product: NodeProto, model: ModelProto, stored: dict[str, TensorProto]) -> str:
    """The name of the stored scales after a `MatMulInteger`: Cast, then Mul by (the input's scale x these)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    floats = readers[product.output[0]]
    factors = [name for name in readers[floats.output[0]].input if name != floats.output[0]]
    candidates: list[str] = [name for factor in factors for name in (factor, *makers[factor].input)]
    return next(name for name in candidates if name in stored)


def dequantized_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The output of a node whose inputs are all stored."""
    run = open_operator(node, None, TensorProto.FLOAT, stored, path, node.input[1])
    return run(np.empty(0)).astype(np.float32)


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
    width = (
        next((attribute.i for attribute in node.attribute if attribute.name == "K"), 0) or stored[node.input[1]].dims[0]
    )
    run = open_operator(product, node.input[0], TensorProto.FLOAT, stored, path, node.input[2])
    columns = [(start, min(ROWS, width - start)) for start in range(0, width, ROWS)]
    rows: Floats = np.empty((0, 0), np.float32)
    for start, count in columns:
        part = run(np.eye(count, width, start, dtype=np.float32))
        if not start:
            rows = np.empty((part.shape[1], width), np.float32)
        rows[:, start : start + count] = part.T
    return rows


def table_rows(node: NodeProto, stored: dict[str, TensorProto], path: Path) -> Floats:
    """The rows [N, K] of a table: every index looked up."""
    run = open_operator(node, node.input[1], TensorProto.INT64, stored, path, node.input[2])
    return run(np.arange(stored[node.input[0]].dims[0])).astype(np.float32, copy=False)


def operator_rows(
    node: NodeProto, stored: dict[str, TensorProto], path: Path, selected: Callable[[str], bool]
) -> Iterator[tuple[str, int, Floats]]:
    """Both weights of a layer of experts in one operator, with the rows of all experts concatenated."""
    values = {attribute.name: attribute.i for attribute in node.attribute}
    for data, scales, zero_points, interleaved in ((2, 3, 11, True), (5, 6, 12, False)):
        parts = [node.input[part] for part in (data, scales, zero_points) if part < len(node.input)]
        if not selected(parts[0]):
            continue
        weight = expert_rows([stored[part] for part in parts], values["expert_weight_bits"], path)
        experts, rows, width = weight.shape
        if interleaved:  # gate and up rows alternate in the operator, and are concatenated in PyTorch
            weight = weight.reshape(experts, rows // 2, 2, width).swapaxes(1, 2)
        yield parts[0], values["block_size"], weight.reshape(experts * rows, width)


def loop_rows(
    loop: NodeProto, stored: dict[str, TensorProto], path: Path, selected: Callable[[str], bool]
) -> Iterator[tuple[str, int, Floats]]:
    """The weights of a layer of experts that a Loop dequantizes one by one; none if it has no such weights."""
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    gathered = [node.input[0] for node in body.node if node.op_type == "Gather"]
    bits = 4 if any(node.op_type == "BitShift" for node in body.node) else 8
    for data in (name for name in gathered if name in stored and name.endswith(f".{DATA}") and selected(name)):
        parameter = data.removesuffix(DATA)
        parts = [name for part in (DATA, SCALES, ZERO_POINTS) if (name := parameter + part) in stored]
        weight = expert_rows([stored[part] for part in parts], bits, path)
        experts, rows, width = weight.shape
        yield data, width // stored[parts[1]].dims[2], weight.reshape(experts * rows, width)


def expert_rows(parts: Sequence[TensorProto], bits: int, path: Path) -> Floats:
    """float32 [E, N, K] from integers, scales and maybe zero points of E experts; each expert runs as one product."""
    arrays = [numpy_helper.to_array(part, str(path.parent)) for part in parts]
    experts, rows, width = len(arrays[0]), arrays[0].shape[1], arrays[0].shape[2] * 8 // bits
    size = width // arrays[1].shape[2]
    names = [f"part_{index}" for index in range(len(parts))]
    attributes = {"N": rows, "K": width, "bits": bits, "block_size": size}
    product = helper.make_node("MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", **attributes)
    weights = np.empty((experts, rows, width), np.float32)
    for expert in range(experts):
        data, *rest = (array[expert] for array in arrays)
        tensors = {
            name: numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in zip(names, (data.reshape(rows, width // size, -1), *rest), strict=True)
        }
        weights[expert] = product_rows(product, tensors, path)
    return weights


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
    options.add_session_config_entry(DATA_FOLDER, str(path.parent.resolve()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)

    def run(value: NDArray[Any]) -> NDArray[Any]:
        feeds = {} if source is None else {source: value.astype(numpy_dtype)}
        result: NDArray[Any] = session.run(None, feeds)[0]
        return result

    return run
