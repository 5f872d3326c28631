"""The quantized weights of a graph in float32, by the names of their parameters.

Finds the operators that read them, in either target's forms; `operator.py` dequantizes. What graphs gather and restore
by themselves, rows of a table and experts, goes through the product that reads the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qwen3vl_export.artifact import whole_name
from qwen3vl_export.exporter.checkpoint.names import members_of
from qwen3vl_export.exporter.weights.packing import DATA, SCALES, ZERO_POINTS
from qwen3vl_export.runtime.arrays import Floats

from .operator import DEQUANTIZE, VALUES, dequantized_rows, number_of, product_rows, slices, stored_array, table_rows
from .probe import module_of, readers_of, split_after

TABLES = ("GatherBlockQuantized",)  # of artifacts that an earlier version built, and of other exporters
PRODUCTS = ("MatMulNBits", "DynamicQuantizeMatMul")
INTEGER_PRODUCT = "MatMulInteger"  # one scale per column, in standard operators; a Mul applies the scales after it


def dequantized_weights(
    path: Path, selected: Callable[[str], bool] = lambda parameter: True
) -> Iterator[tuple[str, int, Floats]]:
    """Parameter, block size and float32 rows [N, K] of every quantized weight of a graph, or of the selected ones.

    The rows of a fused weight are those of several parameters; the Split of its product says how many each has. Where
    several products have blocks of one weight's rows, these are joined.
    """
    model = onnx.load(path, load_external_data=False)
    readers = readers_of(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    blocks = products_of_blocks(model.graph.node)
    yield from gathered_rows(model.graph.node, stored, path, selected)
    for node in model.graph.node:
        if node.op_type == "QMoE":
            yield from operator_rows(node, stored, path, selected)
            continue
        if node.op_type == "Loop":
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            yield from gathered_rows(body.node, stored, path, selected)
            continue
        source = weight_of(node, stored)
        if source is None:
            continue
        source = whole_name(source)
        products = blocks.get(source, [node])
        if node != products[0] or not any(map(selected, members_of(source))):
            continue
        size = number_of(node, "block_size")
        if node.op_type in TABLES:
            rows = table_rows(node, stored, path)
        elif node.op_type in PRODUCTS:
            rows = joined_rows(products, stored, path)
        elif node.op_type == DEQUANTIZE:
            rows = dequantized_rows(node, stored, path)
        else:
            columns = helper.make_node(DEQUANTIZE, [source, scales_after(node, model, stored)], ["y"], axis=1)
            rows = dequantized_rows(columns, stored, path).T
        split = split_after(node.output[0], readers) if len(members_of(source)) > 1 else None
        counts = numpy_helper.to_array(stored[split.input[1]]) if split is not None else [len(rows)]
        members = members_of(source) if split is not None else [source]
        for member, part in zip(members, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            if selected(member):
                yield member, size or rows.shape[1], part


def place_of(parameter: str) -> tuple[str | None, str]:
    """`language_model.layers.0.mlp.up_proj.weight.quantized` -> `layers.0.mlp.up_proj`, `weight`."""
    module, _, attribute = parameter.removesuffix(f".{DATA}").rpartition(".")
    return module_of(f"{module}.weight"), attribute


def weight_of(node: NodeProto, stored: dict[str, TensorProto]) -> str | None:
    """The quantized weight that a node reads; None if it reads none."""
    if node.op_type in TABLES or (node.op_type == DEQUANTIZE and node.input[0] in stored):
        return str(node.input[0])
    if node.op_type in PRODUCTS or (node.op_type == INTEGER_PRODUCT and node.input[1] in stored):
        return str(node.input[1])
    return None


def products_of_blocks(nodes: Sequence[NodeProto]) -> Mapping[str, Sequence[NodeProto]]:
    """The products that each have a block of one weight's rows, in the order of the rows, by the weight."""
    products = defaultdict(list)
    for node in nodes:
        if node.op_type in PRODUCTS and (whole := whole_name(node.input[1])) != node.input[1]:
            products[whole].append(node)
    return products


def joined_rows(products: Sequence[NodeProto], stored: dict[str, TensorProto], path: Path) -> Floats:
    """The weight [N, K] of a product, or of several that each have a block of its rows."""
    if len(products) == 1:
        return product_rows(products[0], stored, path)
    counts = [number_of(product, "N") for product in products]
    weight: Floats = np.empty((sum(counts), number_of(products[0], "K")), np.float32)
    for product, block in zip(products, np.split(weight, np.cumsum(counts)[:-1]), strict=True):
        block[:] = product_rows(product, stored, path)
    return weight


def scales_after(product: NodeProto, model: ModelProto, stored: dict[str, TensorProto]) -> str:
    """The name of the stored scales after a `MatMulInteger`: Cast, then Mul by (the input's scale x these)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    floats = readers[product.output[0]]
    factors = [name for name in readers[floats.output[0]].input if name != floats.output[0]]
    candidates: list[str] = [name for factor in factors for name in (factor, *makers[factor].input)]
    return next(name for name in candidates if name in stored)


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


def gathered_rows(
    nodes: Sequence[NodeProto], stored: dict[str, TensorProto], path: Path, selected: Callable[[str], bool]
) -> Iterator[tuple[str, int, Floats]]:
    """The weights of which nodes gather packed rows or experts, to restore them; none if there are no such weights."""
    gathered = [node.input[0] for node in nodes if node.op_type == "Gather"]
    bits = 4 if any(node.op_type == "BitShift" for node in nodes) else 8
    for data in (name for name in gathered if name in stored and name.endswith(f".{DATA}") and selected(name)):
        parameter = data.removesuffix(DATA)
        parts = [name for part in (DATA, SCALES, ZERO_POINTS) if (name := parameter + part) in stored]
        weight = expert_rows([stored[part] for part in parts], bits, path)
        experts, rows, width = weight.shape
        yield data, width // stored[parts[1]].dims[-1], weight.reshape(experts * rows, width)


def expert_rows(parts: Sequence[TensorProto], bits: int, path: Path) -> Floats:
    """float32 [E, N, K] from integers, scales and maybe zero points of E experts, each run as one product; of a table E
    is 1."""
    arrays = [stored_array(part, path) for part in parts]
    arrays = [array if array.ndim == 3 else array[None] for array in arrays]
    experts, rows, width = len(arrays[0]), arrays[0].shape[1], arrays[0].shape[2] * 8 // bits
    size = width // arrays[1].shape[2]
    names = [f"part_{index}" for index in range(len(parts))]
    attributes = {"K": width, "bits": bits, "block_size": size}

    def rows_of(expert: int, part: slice) -> Floats:
        data, *rest = (array[expert, part] for array in arrays)
        tensors = {
            name: numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in zip(names, (data.reshape(len(data), width // size, -1), *rest), strict=True)
        }
        product = helper.make_node(
            "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", N=len(data), **attributes
        )
        return product_rows(product, tensors, path)

    weights = np.empty((experts, rows, width), np.float32)
    for expert in range(experts):
        for part in slices(rows, max(1, VALUES // width)):  # a table is as large as many layers
            weights[expert, part] = rows_of(expert, part)
    return weights
