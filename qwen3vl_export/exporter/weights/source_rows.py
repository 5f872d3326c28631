"""The integers of a quantized checkpoint as rows of blocks: unpacked from its files and packed for an operator.

Knows readers and blocks; nothing about which weights are carried over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from ..checkpoint.formats.integers import IntegerMatrix
from .blockwise import Grid, PackedRows, pack_rows, split_blocks
from .packing import TORCH_DTYPES, Blockwise


@dataclass(frozen=True)
class SourceRows:
    """The integers of a checkpoint's tensor, which may be a stack of matrices.

    Attributes:
        tensor: its name.
        matrices: their rows follow one another.
    """

    tensor: str
    matrices: Sequence[IntegerMatrix] = field(compare=False, repr=False)

    @property
    def count(self) -> int:
        return sum(matrix.reader.shape[0] for matrix in self.matrices)

    def read(self, index: Tensor, packing: Blockwise, width: int) -> PackedRows:
        starts = torch.tensor([*accumulate((matrix.reader.shape[0] for matrix in self.matrices), initial=0)])
        places = torch.bucketize(index, starts, right=True) - 1
        blocks = -(-width // packing.block_size)
        integers = torch.empty(len(index), width)
        scales = torch.empty(len(index), blocks, dtype=TORCH_DTYPES[packing.scale_dtype])
        zero_points = torch.empty(len(index), blocks)
        for place in sorted(set(places.tolist())):
            selected = places == place
            rows = index[selected] - starts[place]
            first = int(rows.min())
            parts = self.matrices[place].read(slice(first, int(rows.max()) + 1), packing.block_size)
            for whole, part in zip((integers, scales, zero_points), parts, strict=True):
                whole[selected] = part[rows - first].to(whole.dtype)
        grid = Grid(scales, zero_points)
        return pack_rows(split_blocks(integers, packing.block_size), grid, packing.bits, packing.symmetric, width)
