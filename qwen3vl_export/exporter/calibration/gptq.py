"""GPTQ: rows of a weight to blocks of integers, each rounding error pushed onto the columns not yet rounded.

What counts is not the weight but its product with what the layer gets. For inputs x the squared error of a row w is
(w - q) H (w - q)^T with H = sum of x x^T. Columns are rounded one by one; the error of each, over the diagonal of U,
is taken off the columns after it, where U is the upper Cholesky factor of the inverse of H.

Source: Frantar, Ashkboos, Hoefler, Alistarh: GPTQ (2022), arXiv:2210.17323, algorithm 1; columns in order of falling
diag(H) ("act-order") with the blocks' grids fixed beforehand ("static groups") is from the authors' code, and needs
nothing of the operators that read the result: blocks stay where they are.

Knows tensors; nothing about layers or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..weights.blockwise import Blocks, block_grid, in_blocks, packed

DAMPING = 0.01  # of the mean of diag(H), added to it: the authors' value
STRIP = 4 << 20  # values of a stored Hessian read at a time: 16 MiB
LAZY = 128  # columns whose errors are passed on together, as one matrix product


class Inputs(Protocol):
    """What `factor` and `power` ask of a Hessian: it may lie on disk.

    Attributes:
        diagonal: [K].
    """

    @property
    def diagonal(self) -> Tensor: ...

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first row, rows [n, K]), some at a time."""


class Hessian:
    """H = sum of x x^T over the inputs x [K] that a product was seen to get; float32 [K, K]."""

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

    def store(self, path: Path) -> Stored:
        """This Hessian as a file, so that the one in memory can go."""
        self.sum.numpy().tofile(path)
        return Stored(path, self.diagonal.clone())


@dataclass(frozen=True)
class Stored:
    """A Hessian on disk: beside its factor, which is as large, memory need not hold it."""

    path: Path
    diagonal: Tensor

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        width = len(self.diagonal)
        count = max(1, STRIP // width)
        for first in range(0, width, count):
            values = np.fromfile(self.path, np.float32, min(count, width - first) * width, offset=4 * first * width)
            yield first, torch.from_numpy(values).view(-1, width)


@dataclass(frozen=True)
class Factor:
    """What the inputs say about rounding, shared by all rows of a weight.

    Attributes:
        order: int64 [K], columns by falling importance.
        upper: float32 [K, K], the upper Cholesky factor of the inverse of H, in that order.
    """

    order: Tensor
    upper: Tensor


def factor(hessian: Inputs) -> Factor:
    """The factor of a Hessian; damping is raised until it is positive definite. In H, inputs never seen count as 1.

    All three steps happen in one array, by columns as LAPACK wants it: nothing in memory is larger.
    """
    diagonal = torch.where(hessian.diagonal == 0, 1.0, hessian.diagonal)  # unseen: rounds to nearest, disturbs nobody
    step = DAMPING * float(diagonal.mean())
    order = diagonal.argsort(descending=True, stable=True)
    place = order.argsort()
    ordered = torch.empty(len(order), len(order))
    failed = torch.empty(0, dtype=torch.int32)
    damping = 0.0
    while True:
        damping, step = damping + step, step * 10
        for first, rows in hessian.strips():
            ordered[place[first : first + len(rows)]] = rows[:, order]
        h = ordered.T
        h.diagonal().copy_(diagonal[order] + damping)
        torch.linalg.cholesky_ex(h, out=(h, failed))
        if not failed:
            break
    torch.cholesky_inverse(h, out=h)
    return Factor(order, torch.linalg.cholesky(h, upper=True, out=h))


def quantize_rows(
    rows: Tensor, of: Factor, bits: int, block_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> Blocks:
    """Quantize float32 rows [N, K]; K is padded to whole blocks. Rows do not depend on one another."""
    cut = in_blocks(rows, block_size)
    grid = block_grid(cut, bits, symmetric, True, scale_dtype)
    scales, zeros = grid.scales.T.to(torch.float32).contiguous(), grid.zero.T.contiguous()  # [blocks, N], as all here
    weights = rows.T[of.order]  # [K, N]: a column of the weight is one run of memory
    block_of = (of.order // block_size).tolist()
    for start in range(0, len(weights), LAZY):
        end = min(start + LAZY, len(weights))
        errors = torch.empty(end - start, len(rows))
        for column in range(start, end):
            scale, zero = scales[block_of[column]], zeros[block_of[column]]
            divisor = torch.where(scale == 0, 1.0, scale)
            rounded = (weights[column] / divisor + zero).round_().clamp_(0, 2**bits - 1)
            error = errors[column - start]
            torch.div(weights[column] - (rounded - zero) * scale, of.upper[column, column], out=error)
            weights[column] = rounded
            weights[column + 1 : end].addr_(of.upper[column, column + 1 : end], error, alpha=-1)
        weights[end:].addmm_(of.upper[start:end, end:].T, errors, alpha=-1)
    own = grid.zero.repeat_interleave(block_size, dim=1)  # what stands for 0, where a row is padded
    own[:, of.order] = weights.T
    return packed(own.reshape(cut.shape), grid, bits, symmetric, rows.shape[1])


def power(rows: Tensor, hessian: Inputs) -> float:
    """Sum of squares of the products of rows [N, K] with the inputs seen."""
    return sum(
        float(((rows @ strip.T) * rows[:, first : first + len(strip)]).sum()) for first, strip in hessian.strips()
    )
