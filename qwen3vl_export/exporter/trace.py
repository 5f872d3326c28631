"""Tracing: one submodule on fake weights to one ONNX skeleton whose weights are graph inputs.

A skeleton is an `ir.Model` of a few hundred kilobytes. Its weights stand among the inputs under `weights/<parameter>`,
so that no pass can read, fold or copy one; `weights/` turns them into initializers at the end. Its inputs and outputs
carry the names of the contract, and a dim the tracer fixed by itself is an error here.

Knows nothing about files. Constants that geometry needs (rotary frequencies) stay real initializers.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..contract import Graph, Tensor
from ..errors import BuildError
from .submodules import Submodule
from .unroll import unroll
from .weights.inputs import WEIGHTS

OPSET = 23  # RMSNormalization and RotaryEmbedding are standard ops from here on
STACK_TRACE = "pkg.torch.onnx.stack_trace"

# Sizes the example inputs have. Distinct, none of them 0 or 1, so that the tracer can confuse no two dims.
EXAMPLE_DIMS = {
    "num_patches": 768,  # a multiple of every merge unit
    "num_images": 3,
    "num_image_tokens": 11,
    "batch_size": 2,
    "sequence_length": 7,
    "past_sequence_length": 5,
    "total_sequence_length": 12,
}


def trace(submodule: Submodule, dtype: torch.dtype) -> ir.Model:
    """Export a submodule at `OPSET` and name everything after its contract.

    Args:
        dtype: what "float" means in the contract.

    Raises:
        BuildError: an input or output does not have the contract's shape, or a dynamic dim was specialised.
    """
    graph = submodule.traced or submodule.graph
    with submodule.fake_mode:
        values = [_example(tensor, dtype) for tensor in graph.inputs]
    dynamic = [
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in graph.inputs
    ]
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            submodule.module,
            submodule.arrange(values),
            dynamic_shapes=submodule.arrange(dynamic),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise BuildError(f"{graph.name}: torch.onnx.export returned nothing", "Check the torch version")
    model: ir.Model = program.model
    model.graph.name = graph.name
    _name_tensors(model, graph)
    _lift_weights(model)
    if submodule.stack is not None:
        model = unroll(model, submodule.stack)
        _check_names(model, submodule.graph)
    for node in model.graph.all_nodes():
        node.metadata_props.pop(STACK_TRACE, None)  # names this machine's directories
    return model


def _example(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    sizes = [EXAMPLE_DIMS[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.zeros(sizes, dtype=dtype if tensor.dtype == "float" else getattr(torch, tensor.dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's notes about its own inside; errors still come through."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _name_tensors(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs the contract's names and dims; every dim must be what the contract says it is."""
    for kind, values, tensors in (
        ("input", model.graph.inputs, graph.inputs),
        ("output", model.graph.outputs, graph.outputs),
    ):
        if len(values) != len(tensors):
            raise BuildError(f"{graph.name}: {len(values)} {kind}s traced, the contract has {len(tensors)}")
        for value, tensor in zip(values, tensors, strict=True):
            traced = tuple(value.shape) if value.shape is not None else ()
            if len(traced) != len(tensor.shape) or any(
                isinstance(have, int) != isinstance(want, int) or (isinstance(want, int) and have != want)
                for have, want in zip(traced, tensor.shape, strict=True)
            ):
                raise BuildError(
                    f"{graph.name}: {kind} {tensor.name} was traced as {traced}, the contract says {tensor.shape}"
                )
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)


def _check_names(model: ir.Model, graph: Graph) -> None:
    """An unrolled skeleton must have the contract's inputs and outputs, in its order."""
    found = [value.name for value in (*model.graph.inputs[: len(graph.inputs)], *model.graph.outputs)]
    if found != [tensor.name for tensor in (*graph.inputs, *graph.outputs)]:
        raise BuildError(f"{graph.name}: unrolled to {found}", "This is a bug; report it")


def _lift_weights(model: ir.Model) -> None:
    """Turn every fake initializer into a graph input `weights/<parameter>`."""
    for name, value in list(model.graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, FakeTensor):
            del model.graph.initializers[name]
            value.const_value = None
            value.name = WEIGHTS + name
            model.graph.inputs.append(value)
