"""The products of a decoder layer: what they get is summed up, then their weights are quantized some rows at a time.

Rows are read from the checkpoint anew for that: a Hessian is as large as a layer, and by then the layer that ran is out
of memory. Knows transformers' decoder layers; nothing about prompts or graphs.
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

from ..checkpoint import Checkpoint, checkpoint_name
from ..weights.packing import TORCH, Blockwise
from .gptq import Hessian, factor, power, quantize_rows
from .results import Results

HESSIAN = "hessian.f32"  # the one being factored, beside the results
VALUES = 8 << 20  # of a weight at a time: 32 MiB of float32, of which rounding takes half a dozen copies


@dataclass(frozen=True)
class Products:
    """What every weight is quantized with, and where the results go.

    Attributes:
        keep: patterns of the exporter's names of weights that are not quantized.
    """

    checkpoint: Checkpoint
    packing: Blockwise
    keep: tuple[str, ...]
    results: Results

    def kept(self, parameter: str) -> bool:
        """Whether a weight, by the exporter's name, stays as it is."""
        return any(fnmatchcase(parameter, pattern) for pattern in self.keep)

    def of(self, layer: nn.Module, prefix: str) -> dict[str, nn.Linear]:
        """A layer's products that are quantized, by the exporter's names of their weights; they begin with `prefix`."""
        found = {f"{prefix}{name}.weight": module for name, module in layer.named_modules()}
        return {name: module for name, module in found.items() if isinstance(module, nn.Linear) and not self.kept(name)}

    def quantize(self, hessians: dict[str, Hessian]) -> dict[str, float]:
        """Quantize weights by what their products got, and forget it; returns the relative L2 error of each output.

        Args:
            hessians: by the exporter's name of the weight; products of one input share one. Empty afterwards.
        """
        sharing: dict[Hessian, list[str]] = {}
        for name in [*hessians]:
            sharing.setdefault(hessians.pop(name), []).append(name)
        errors: dict[str, float] = {}
        while sharing:
            first = next(iter(sharing))  # in a layer's order: the widest, `down_proj`'s, when the others are gone
            names = sharing.pop(first)
            hessian = first.store(self.results.directory / HESSIAN)
            del first
            factored = factor(hessian)
            for name in names:
                changed = whole = 0.0
                count, width = self.checkpoint.tensors[self._tensor(name)].shape
                self.results.create(name, count, width, self.packing)
                for rows in _slices(count, width):
                    weights = self._read(name, rows)
                    how = self.packing
                    scales = TORCH[how.scales]
                    blocks = quantize_rows(weights, factored, how.bits, how.block_size, how.symmetric, scales)
                    self.results.write(name, rows.start, blocks)
                    changed += power(weights - blocks.restored, hessian)
                    whole += power(weights, hessian)
                errors[name] = math.sqrt(max(0.0, changed) / max(whole, 1e-30))
        return errors

    @contextmanager
    def reading(self, products: dict[str, nn.Linear]) -> Iterator[None]:
        """Inside, products read their weights some rows at a time whenever they run, and hold none."""

        def run(name: str, module: nn.Linear) -> Callable[[Tensor], Tensor]:
            def forward(given: Tensor) -> Tensor:
                slices = _slices(module.out_features, module.in_features)
                out = torch.cat([given @ self._read(name, rows).T for rows in slices], dim=-1)
                return out if module.bias is None else out + module.bias

            return forward

        with ExitStack() as stack:
            for name, module in products.items():
                module.forward = run(name, module)  # type: ignore[assignment, method-assign]
                stack.callback(delattr, module, "forward")
            yield

    def restore(self, products: dict[str, nn.Linear]) -> None:
        """Give products the numbers that their integers stand for."""
        for name, module in products.items():
            weight = torch.empty(module.weight.shape)
            for rows in _slices(*weight.shape):
                count = rows.stop - rows.start
                blocks = self.results.read(name, rows.start, count, self.packing.bits, module.in_features)
                weight[rows] = blocks.restored
            module.weight = nn.Parameter(weight, requires_grad=False)

    def _tensor(self, name: str) -> str:
        return checkpoint_name(name, bool(self.checkpoint.config.tie_word_embeddings))

    def _read(self, name: str, rows: slice) -> Tensor:
        return self.checkpoint.read(self._tensor(name), rows).to(torch.float32)


def _slices(count: int, width: int) -> Iterator[slice]:
    each = max(1, VALUES // width)
    for first in range(0, count, each):
        yield slice(first, min(first + each, count))


@contextmanager
def watched(products: dict[str, nn.Linear]) -> Iterator[dict[str, Hessian]]:
    """The Hessian of each product's inputs, filled as it runs; products that are given the same tensor share one."""
    hessians: dict[str, Hessian] = {}
    seen: list[Any] = [None, None]  # the last input, and its Hessian

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Linear, given: tuple[Tensor, ...]) -> None:
            if given[0] is not seen[0]:
                if name not in hessians:
                    hessians[name] = Hessian(module.in_features)
                hessians[name].add(given[0])
                seen[:] = given[0], hessians[name]
            hessians[name] = seen[1]

        return see

    with ExitStack() as stack:
        for name, module in products.items():
            stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield hessians
