"""Tracing: one submodule on fake weights to one ONNX skeleton whose weights are graph inputs.

A skeleton is an `ir.Model` of a few hundred kilobytes. Its weights are inputs named `weights/<parameter>`, so that no
pass can read, fold or copy one; `weights/` makes them initializers at the end. Its inputs and outputs have the names of
the contract, and a dynamic dim that the tracer specialised is an error.

Knows nothing about files. Constants of the geometry (rotary frequencies) stay real initializers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import config as fx_config

from ..contract import Graph, Tensor
from ..errors import BuildError
from .submodules import Submodule
from .unroll import unroll
from .weights.inputs import WEIGHTS

OPSET = 23  # the first with the standard ops RMSNormalization and RotaryEmbedding
STACK_TRACE = "pkg.torch.onnx.stack_trace"

# Sizes of the example inputs: distinct, and none is 0 or 1, so that the tracer cannot mistake one dim for another.
EXAMPLE_DIMS = {
    "num_patches": 3600,  # a multiple of the square of every merge size
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
    graph = submodule.traced_graph or submodule.graph
    with submodule.fake_mode:
        values = [_example_input(tensor, dtype) for tensor in graph.inputs]
    dynamic = [
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in graph.inputs
    ]
    with torch.no_grad(), _silence_exporter(), _spare_tracer():
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
        node.metadata_props.pop(STACK_TRACE, None)  # `_spare_tracer` leaves it empty
    return model


def _example_input(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    sizes = [EXAMPLE_DIMS[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
    return torch.zeros(sizes, dtype=dtype if tensor.dtype == "float" else getattr(torch, tensor.dtype))


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter's notes about its internals; errors are still raised."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


@contextlib.contextmanager
def _spare_tracer() -> Iterator[None]:
    """Leave out what takes a quarter of the tracer's time: a search for cycles among all that torch and transformers
    are made of, and for each node a stack trace."""
    collects, setting = gc.isenabled(), fx_config.do_not_emit_stack_traces
    gc.disable()
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = setting
        if collects:
            gc.enable()


def _name_tensors(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs the contract's names and dims, after checking every dim against the contract."""
    for kind, values, tensors in (
        ("input", model.graph.inputs, graph.inputs),
        ("output", model.graph.outputs, graph.outputs),
    ):
        if len(values) != len(tensors):
            raise BuildError(f"{graph.name}: {len(values)} {kind}s traced, the contract has {len(tensors)}")
        for value, tensor in zip(values, tensors, strict=True):
            traced = tuple(value.shape) if value.shape is not None else ()
            if len(traced) != len(tensor.shape) or any(
                isinstance(dim, int) != isinstance(declared, int) or (isinstance(declared, int) and dim != declared)
                for dim, declared in zip(traced, tensor.shape, strict=True)
            ):
                raise BuildError(
                    f"{graph.name}: {kind} {tensor.name} was traced as {traced}, the contract says {tensor.shape}"
                )
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)


def _check_names(model: ir.Model, graph: Graph) -> None:
    """Check that an unrolled skeleton has the contract's inputs and outputs, in order."""
    names = [value.name for value in (*model.graph.inputs[: len(graph.inputs)], *model.graph.outputs)]
    if names != [tensor.name for tensor in (*graph.inputs, *graph.outputs)]:
        raise BuildError(f"{graph.name}: unrolled to {names}", "This is a bug; report it")


def _lift_weights(model: ir.Model) -> None:
    """Turn every fake initializer into a graph input `weights/<parameter>`."""
    for name, value in list(model.graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, FakeTensor):
            del model.graph.initializers[name]
            value.const_value = None
            value.name = WEIGHTS + name
            model.graph.inputs.append(value)
