"""How fast this machine is at what a verification does, measured in a few seconds.

Products of both sides are timed with many rows, as a prompt has, and with one, as a step of decoding has: PyTorch's as
large as those of the model's MLP, the artifact's one of its decoder's own, and where that rounds activations, without
rounding them as well. Knows kinds of work; nothing about cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch.nn import functional as F

from qwen3vl_export.artifact import Artifact, whole_name
from qwen3vl_export.contract import DECODER
from qwen3vl_export.exporter.checkpoint.files import weight_files
from qwen3vl_export.promise import rounding_graphs

from ..judging.measures import logit_closeness
from ..sides.artifact.float_activations import float_activations
from ..sides.artifact.operator import open_operator
from ..sides.pytorch.products import LargeProducts
from .sizes import ModelSizes

ROWS = 256  # of a product, about those of a prompt
SCORES = (8, 512, 512)  # of the attention whose softmax is timed
LOGITS = (4, 16384)  # that are compared
READ, PIECE = 256 << 20, 4 << 20  # bytes of the checkpoint that are read, and at a time
QUANTIZED = ("MatMulNBits", "DynamicQuantizeMatMul")
PRODUCTS = (*QUANTIZED, "MatMul", "Gemm")
SHORT = 0.3  # seconds; what takes less is timed three times, because other programs interrupt it


@dataclass(frozen=True)
class ProductRates:
    """Seconds for a floating-point operation of a product, with many rows and with one."""

    many: float
    single: float


@dataclass(frozen=True)
class Rates:
    """Seconds for a unit of each kind of work.

    Attributes:
        pytorch, artifact: of PyTorch's products, and of those in the artifact's decoder.
        in_float: of the copy of the decoder that rounds no activations; None if the artifact rounds none.
        score: for one score in eager attention.
        compared: for comparing a logit of one side with the other's.
        read: for reading a byte of the checkpoint.
    """

    pytorch: ProductRates
    artifact: ProductRates
    in_float: ProductRates | None
    score: float
    compared: float
    read: float


def measure_rates(artifact: Artifact, checkpoint: Path, model: ModelSizes, threads: int) -> Rates:
    """The rates on this machine.

    Args:
        threads: that PyTorch computes on.
    """
    weight = torch.ones(model.active, model.hidden)
    with torch.no_grad(), torch_threads(threads), LargeProducts():
        pytorch = time_product(lambda rows: F.linear(torch.ones(rows, model.hidden), weight), weight.numel())
        scores = torch.ones(SCORES)
        score = seconds(lambda: torch.softmax(scores + scores, dim=-1)) / prod(SCORES)
    ours = time_product(*open_product(artifact, model))
    rounding = DECODER in rounding_graphs(artifact.manifest.recipe, artifact.manifest.facts.model_type)
    in_float = time_product(*open_product(artifact, model, in_float=True)) if rounding else None
    logits = np.ones(LOGITS, np.float32)
    compared = seconds(lambda: logit_closeness(logits, logits)) / logits.size
    return Rates(pytorch, ours, in_float, score, compared, seconds_per_byte(checkpoint))


def time_product(product: Callable[[int], Any], weights: int) -> ProductRates:
    """The rates of a product that takes a number of rows."""
    many, single = (seconds(partial(product, rows)) / (2 * rows * weights) for rows in (ROWS, 1))
    return ProductRates(many, single)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Callable[[], Any]) -> float:
    """The seconds that some work takes once it has been done before; the least of three if it is short."""
    work()
    times: list[float] = []
    while len(times) < 3 and (not times or times[-1] < SHORT):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_per_byte(checkpoint: Path) -> float:
    """For reading the checkpoint as it is now, in the system's cache or not."""
    file = max(weight_files(checkpoint), key=lambda path: path.stat().st_size)
    start, count = time.perf_counter(), 0
    with file.open("rb", buffering=0) as stream:
        while count < READ and (piece := stream.read(PIECE)):
            count += len(piece)
    return (time.perf_counter() - start) / max(1, count)


def open_product(artifact: Artifact, model: ModelSizes, in_float: bool = False) -> tuple[Callable[[int], Any], int]:
    """A function that runs one of the decoder's products with so many rows, and the number of its weights.

    It is the largest of the layers' that a node computes from a stored weight; a block of the head is not one. Where
    there is none, as with weights that are cast first, it is one in float32.

    Args:
        in_float: of a copy that rounds no activations.
    """
    path = artifact.graph_path(DECODER) if DECODER in artifact.manifest.graphs else None
    decoder = onnx.load(path, load_external_data=False) if path else ModelProto()
    graph = float_activations(decoder).graph if in_float else decoder.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {
        node.output[0]: product_size(node, stored)
        for node in graph.node
        if node.op_type in PRODUCTS
        and all(name in stored and name == whole_name(name) for name in node.input[1:] if name)
    }
    layers = [node for node in graph.node if model.vocabulary not in sizes.get(node.output[0], (model.vocabulary,))]
    if not layers or path is None:
        weight = np.ones((model.hidden, model.active), np.float32)
        node, stored = helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": numpy_helper.from_array(weight, "w")}
        size, path = (model.hidden, model.active), Path()
    else:
        node = max(layers, key=lambda node: prod(sizes[node.output[0]]))
        size = sizes[node.output[0]]
    floats = node.input[2 if node.op_type in QUANTIZED else 1]
    run = open_operator(node, node.input[0], TensorProto.FLOAT, stored, path, floats)
    return lambda rows: run(np.ones((rows, size[0]), np.float32)), prod(size)


def product_size(node: NodeProto, stored: dict[str, TensorProto]) -> tuple[int, int]:
    """Width of a product's input and of its output."""
    values = {attribute.name: attribute.i for attribute in node.attribute}
    if "K" in values:
        return values["K"], values["N"]
    rows, columns = stored[node.input[1]].dims
    return (columns, rows) if values.get("transB") else (rows, columns)
