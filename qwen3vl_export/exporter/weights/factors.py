"""Factors that a weight is multiplied with on its way to disk: one for each of its rows, and one for each column.

Powers of two, so that no value is rounded, whatever its dtype. Knows tensors; nothing about what factors are for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """The factors of a tensor [N] or [N, K] as the checkpoint stores it.

    Attributes:
        rows: float32 [N], powers of two.
        columns: float32 [K], powers of two; [1] for a tensor [N].
        digest: of both, which stands for them where sources are compared and printed.
    """

    rows: Tensor = field(compare=False, repr=False)
    columns: Tensor = field(compare=False, repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        data = b"".join(factors.numpy().tobytes() for factors in (self.rows, self.columns))
        object.__setattr__(self, "digest", hashlib.sha256(data).hexdigest())

    def scale(self, rows: Tensor, first: int) -> Tensor:
        """Rows [n] or [n, …] of the tensor, from row `first` on, multiplied; in float32 if in half precision, whose
        range may not hold them."""
        wide = rows.to(torch.float32) if rows.dtype == torch.float16 else rows
        matrix = wide.reshape(len(rows), -1)
        factors = self.rows[first : first + len(rows), None] * self.columns
        return (matrix * factors.to(wide.dtype)).reshape(rows.shape)
