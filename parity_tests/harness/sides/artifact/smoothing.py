"""Smoothed weights: the powers of two that columns and rows were multiplied with, found from the weights alone.

A build multiplies columns of a product and divides what makes these channels: the norm before it, or the rows of the
values whose attention it reads. Here PyTorch's norms and values are divided by what is found in the product's columns.
So both sides compute with the same numbers at every layer, and an artifact that multiplied one and did not divide the
other gives other features.

Knows transformers' names in the tower; nothing about how scales were chosen.

Legend: N outputs, K input channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qwen3vl_export.contract import VISION_ENCODER
from qwen3vl_export.runtime.arrays import Floats

QKV, PROJ = "attn.qkv", "attn.proj"
PRODUCTS = (QKV, PROJ, "linear_fc1")  # whose columns may be multiplied
MAKERS = {"qkv": "norm1", "linear_fc1": "norm2"}  # of a block's products; the norm of a merger is just its norm
SIGNIFICANT = 0.05  # of a row's largest value: smaller ones are few steps of their row
SAMPLES = 512  # rows at least, if there are as many, whose median is what a column was multiplied with


class Exponents(NamedTuple):
    """Of the powers of two that rows [N] and columns [K] of a weight were multiplied with, float32."""

    rows: Tensor
    columns: Tensor

    def apply(self, weight: Tensor) -> Tensor:
        """A weight [N, K], multiplied."""
        return weight * (self.rows[:, None] + self.columns).exp2()


def is_smoothed(recipe: Mapping[str, Any], graph: str) -> bool:
    """Whether the weights of a graph were smoothed."""
    plan = (recipe.get("quantization") or {}).get(graph, {})
    return graph == VISION_ENCODER and plan.get("smoothing", "none") != "none"


def find_exponents(module: str, dequantized: Floats, truth: Floats) -> Exponents:
    """What a weight [N, K] of a module was multiplied with before it was quantized; nothing but what may be."""
    rows, columns = (torch.zeros(count) for count in truth.shape)
    if module.endswith(PRODUCTS):  # most rows are multiplied with nothing else
        some = slice(None, None, max(1, len(rows) // SAMPLES))
        ratios, clear = log_ratios(dequantized[some], truth[some])
        medians = clear.nanmedian(0).values
        columns = torch.where(medians.isnan(), ratios.nanmedian(0).values, medians).nan_to_num().round()
    if module.endswith(QKV):
        values = len(rows) * 2 // 3  # after queries and keys
        _, clear = log_ratios(dequantized[values:], truth[values:])
        rows[values:] = (clear - columns).nanmedian(1).values.nan_to_num().round()
    return Exponents(rows, columns)


def log_ratios(dequantized: Floats, truth: Floats) -> tuple[Tensor, Tensor]:
    """Logarithms of the ratios of two weights [N, K] to base 2: of all that are not zero, and of those that are many
    steps of their row; NaN elsewhere."""
    weight, original = (torch.from_numpy(np.ascontiguousarray(rows)).abs() for rows in (dequantized, truth))
    ratios = (weight / original).log2()
    ratios[~ratios.isfinite()] = torch.nan
    return ratios, torch.where(weight >= SIGNIFICANT * weight.amax(1, keepdim=True), ratios, torch.nan)


def fold_makers(modules: Mapping[str | None, nn.Module], found: Mapping[str, Exponents]) -> None:
    """Let PyTorch compute what smoothed products expect, whatever the artifact does.

    Args:
        modules: of the tower, by name (`blocks.0.attn.qkv`); the products have the artifact's weights.
        found: of these weights.
    """
    for name, (rows, columns) in found.items():
        module: Any = modules[name]
        wanted = torch.zeros_like(rows)
        if name.endswith(QKV) and (reader := found.get(name.replace(QKV, PROJ))) is not None:
            wanted[-len(reader.columns) :] = -reader.columns
        multiply(module, "weight", wanted - rows)
        multiply(module, "bias", wanted)
        block, _, kind = name.rpartition(".")
        if kind in MAKERS:
            owner = block.removesuffix(".attn").removesuffix(".mlp")
            norm: Any = modules.get(f"{owner}.{MAKERS[kind] if owner.startswith('blocks.') else 'norm'}")
            if norm is None:  # a merger's parts are loaded one by one where PyTorch is streamed
                module.weight = nn.Parameter(module.weight * (-columns).exp2(), requires_grad=False)
                continue
            for attribute in ("weight", "bias"):
                multiply(norm, attribute, -columns[: len(norm.weight)])


def multiply(module: Any, attribute: str, exponents: Tensor) -> None:
    """Multiply a parameter [N, …] with powers of two [N]."""
    values = getattr(module, attribute).detach()
    factors = exponents.exp2().reshape(-1, *[1] * (values.ndim - 1)).to(values.device)
    setattr(module, attribute, nn.Parameter(values * factors, requires_grad=False))
