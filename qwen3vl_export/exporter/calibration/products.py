"""The products of a decoder layer: their inputs are summed up, then their weights are quantized some rows at a time.

Those rows are read from the checkpoint again: a Hessian is as large as a layer, and the layer that ran is out of memory
by then. Knows transformers' decoder layers; nothing about prompts or graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..checkpoint.names import checkpoint_name
from ..weights.blockwise import PackedRows
from ..weights.packing import TORCH_DTYPES, Blockwise
from .gptq import Factor, Hessian, factor, output_power, quantize_gptq
from .results import CalibrationResults

HESSIAN_FILE = "hessian.f32"  # the one being factored, beside the results
SLICE_VALUES = 8 << 20  # of a weight at a time: 32 MiB of float32, of which rounding takes half a dozen copies


@dataclass(frozen=True)
class Products:
    """Quantizes weights by their products, and stores the results. Weights are named as the exporter names them.

    Attributes:
        keep: patterns of the names of weights that are not quantized.
    """

    checkpoint: Checkpoint
    packing: Blockwise
    keep: tuple[str, ...]
    results: CalibrationResults

    def keeps(self, parameter: str) -> bool:
        """Whether a weight is not quantized."""
        return any(fnmatchcase(parameter, pattern) for pattern in self.keep)

    def select(self, layer: nn.Module, prefix: str) -> dict[str, nn.Linear]:
        """A layer's products that are quantized, by the names of their weights, which begin with `prefix`."""
        products = {f"{prefix}{name}.weight": m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        return {name: module for name, module in products.items() if not self.keeps(name)}

    def quantize(self, hessians: dict[str, Hessian]) -> dict[str, float]:
        """Quantize weights by the inputs of their products; returns the relative L2 error of each output.

        Args:
            hessians: by name of the weight; products of one input share one. Empty afterwards, to free their memory.
        """
        names_by_hessian: dict[Hessian, list[str]] = {}
        for name in [*hessians]:
            names_by_hessian.setdefault(hessians.pop(name), []).append(name)
        errors: dict[str, float] = {}
        while names_by_hessian:
            summed = next(iter(names_by_hessian))  # in a layer's order: the largest, `down_proj`'s, is the last
            names = names_by_hessian.pop(summed)
            hessian = summed.store(self.results.directory / HESSIAN_FILE)
            del summed
            factored = factor(hessian)
            for name in names:
                error_power = power = 0.0
                count, width = self.checkpoint.tensors[self._tensor(name)].shape
                self.results.create(name, count, width, self.packing)
                for rows in _split_rows(count, width):
                    weights = self._read(name, rows)
                    packed = self._quantize(weights, factored)
                    self.results.write(name, rows.start, packed)
                    error_power += output_power(weights - packed.dequantized, hessian)
                    power += output_power(weights, hessian)
                errors[name] = math.sqrt(max(0.0, error_power) / max(power, 1e-30))
        return errors

    @contextmanager
    def read_on_call(self, products: dict[str, nn.Linear]) -> Iterator[None]:
        """Inside the context, products hold no weights and read them, some rows at a time, whenever they are called."""

        def bind(name: str, module: nn.Linear) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                slices = _split_rows(module.out_features, module.in_features)
                out = torch.cat([x @ self._read(name, rows).T for rows in slices], dim=-1)
                return out if module.bias is None else out + module.bias

            return forward

        with ExitStack() as stack:
            for name, module in products.items():
                module.forward = bind(name, module)  # type: ignore[assignment, method-assign]
                stack.callback(delattr, module, "forward")
            yield

    def load_dequantized(self, products: dict[str, nn.Linear]) -> None:
        """Set the weights of products to their dequantized values."""
        for name, module in products.items():
            weight = torch.empty(module.weight.shape)
            for rows in _split_rows(*weight.shape):
                count = rows.stop - rows.start
                packed = self.results.read(name, rows.start, count, self.packing.bits, module.in_features)
                weight[rows] = packed.dequantized
            module.weight = nn.Parameter(weight, requires_grad=False)

    def _quantize(self, weights: Tensor, factored: Factor) -> PackedRows:
        packing, scale_dtype = self.packing, TORCH_DTYPES[self.packing.scale_dtype]
        return quantize_gptq(weights, factored, packing.bits, packing.block_size, packing.symmetric, scale_dtype)

    def _tensor(self, name: str) -> str:
        return checkpoint_name(name, self.checkpoint.tied)

    def _read(self, name: str, rows: slice) -> Tensor:
        return self.checkpoint.read(self._tensor(name), rows).to(torch.float32)


def _split_rows(count: int, width: int) -> Iterator[slice]:
    rows = max(1, SLICE_VALUES // width)
    for first in range(0, count, rows):
        yield slice(first, min(first + rows, count))


@contextmanager
def collect_hessians(products: dict[str, nn.Linear]) -> Iterator[dict[str, Hessian]]:
    """Sum the Hessian of each product's inputs as it is called; products that are given the same tensor share one."""
    hessians: dict[str, Hessian] = {}
    last: list[Any] = [None, None]  # the last input, and its Hessian

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0] is not last[0]:
                if name not in hessians:
                    hessians[name] = Hessian(module.in_features)
                hessians[name].add(inputs[0])
                last[:] = inputs[0], hessians[name]
            hessians[name] = last[1]

        return add

    with ExitStack() as stack:
        for name, module in products.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield hessians
