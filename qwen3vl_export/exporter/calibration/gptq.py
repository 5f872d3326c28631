"""GPTQ: rows of a weight to blocks of integers, each rounding error compensated by the columns not yet rounded.

It minimizes the error of the layer's output, not of the weight. For inputs x the squared error of a row w is
(w - q) H (w - q)^T with H = sum of x x^T. Columns are rounded one by one; the error of each, divided by its diagonal
element of U, is subtracted from the columns after it, where U is the upper Cholesky factor of the inverse of H.

Source: Frantar, Ashkboos, Hoefler, Alistarh: GPTQ (2022), arXiv:2210.17323, algorithm 1. Columns in order of decreasing
diag(H) ("act-order") on block grids that are fixed beforehand ("static groups") are from the authors' code; the
operators that read the result need no support for it, since blocks keep their places.

Knows tensors; nothing about layers or files.

Legend: N rows of a weight, K values of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..weights.blockwise import PackedRows, fit_grid, pack_rows, split_blocks

DAMPING = 0.01  # of the mean of diag(H), added to it: the authors' value
READ_VALUES = 4 << 20  # of a stored Hessian, read at a time: 16 MiB
LAZY_BATCH = 128  # columns whose errors update the columns after them together, as one matrix product


class HessianLike(Protocol):
    """What `factor` and `output_power` need of a Hessian, in memory or on disk.

    Attributes:
        diagonal: [K].
    """

    @property
    def diagonal(self) -> Tensor: ...

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first row, rows [n, K]), some at a time."""


class Hessian:
    """H = sum of x x^T over the inputs x [K] of a product; float32 [K, K]."""

    def __init__(self, width: int) -> None:
        self.sum = torch.zeros(width, width)
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Inputs [..., K]."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
        self.sum.addmm_(rows.T, rows)
        self.rows += len(rows)

    @property
    def diagonal(self) -> Tensor:
        return self.sum.diagonal()

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.sum

    def store(self, path: Path) -> StoredHessian:
        """Write this Hessian to a file, so that its memory can be freed."""
        self.sum.numpy().tofile(path)
        return StoredHessian(path, self.diagonal.clone())


@dataclass(frozen=True)
class StoredHessian:
    """A Hessian on disk, so that memory holds only its factor, which is as large."""

    path: Path
    diagonal: Tensor

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        width = len(self.diagonal)
        count = max(1, READ_VALUES // width)
        for first in range(0, width, count):
            values = np.fromfile(self.path, np.float32, min(count, width - first) * width, offset=4 * first * width)
            yield first, torch.from_numpy(values).view(-1, width)


@dataclass(frozen=True)
class Factor:
    """What GPTQ derives from the inputs, shared by all rows of a weight.

    Attributes:
        order: int64 [K], columns by decreasing diag(H).
        upper: float32 [K, K], the upper Cholesky factor of the inverse of H, in that order.
    """

    order: Tensor
    upper: Tensor


def factor(hessian: HessianLike) -> Factor:
    """Factor a Hessian; damping is raised until it is positive definite. Inputs that are always 0 count as 1.

    All three steps work in place on one array, column-major as LAPACK requires: nothing in memory is larger.
    """
    diagonal = torch.where(hessian.diagonal == 0, 1.0, hessian.diagonal)  # such columns are rounded to nearest
    step = DAMPING * float(diagonal.mean())
    order = diagonal.argsort(descending=True, stable=True)
    rank = order.argsort()
    ordered = torch.empty(len(order), len(order))
    failed = torch.empty(0, dtype=torch.int32)
    damping = 0.0
    while True:
        damping, step = damping + step, step * 10
        for first, rows in hessian.strips():
            ordered[rank[first : first + len(rows)]] = rows[:, order]
        h = ordered.T
        h.diagonal().copy_(diagonal[order] + damping)
        torch.linalg.cholesky_ex(h, out=(h, failed))
        if not failed:
            break
    torch.cholesky_inverse(h, out=h)
    return Factor(order, torch.linalg.cholesky(h, upper=True, out=h))


def quantize_gptq(
    rows: Tensor, factored: Factor, bits: int, block_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> PackedRows:
    """Quantize float32 rows [N, K]; K is padded to whole blocks. Rows do not depend on one another."""
    blocks = split_blocks(rows, block_size)
    grid = fit_grid(blocks, bits, symmetric, True, scale_dtype)
    scales, zeros = grid.scales.T.to(torch.float32).contiguous(), grid.zero.T.contiguous()  # [blocks, N]
    weights = rows.T[factored.order]  # [K, N]: a column of the weight is contiguous
    block_indices = (factored.order // block_size).tolist()
    for start in range(0, len(weights), LAZY_BATCH):
        end = min(start + LAZY_BATCH, len(weights))
        errors = torch.empty(end - start, len(rows))
        for column in range(start, end):
            scale, zero = scales[block_indices[column]], zeros[block_indices[column]]
            divisor = torch.where(scale == 0, 1.0, scale)
            rounded = (weights[column] / divisor + zero).round_().clamp_(0, 2**bits - 1)
            error = errors[column - start]
            torch.div(weights[column] - (rounded - zero) * scale, factored.upper[column, column], out=error)
            weights[column] = rounded
            weights[column + 1 : end].addr_(factored.upper[column, column + 1 : end], error, alpha=-1)
        weights[end:].addmm_(factored.upper[start:end, end:].T, errors, alpha=-1)
    integers = grid.zero.repeat_interleave(block_size, dim=1)  # rows are padded with what represents 0
    integers[:, factored.order] = weights.T
    return pack_rows(integers.reshape(blocks.shape), grid, bits, symmetric, rows.shape[1])


def output_power(rows: Tensor, hessian: HessianLike) -> float:
    """Sum of squares of the products of rows [N, K] with the inputs that the Hessian was summed over."""
    return sum(
        float(((rows @ strip.T) * rows[:, first : first + len(strip)]).sum()) for first, strip in hessian.strips()
    )
