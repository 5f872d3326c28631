"""The stored parts of quantized matrices: collected by matrix, checked against one another. Knows names and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ....errors import CheckpointError
from ..safetensors_file import DOWNLOAD_AGAIN, StoredTensor
from ..tensors import StoredReader, TensorReader
from .readers import SpreadReader

Block = tuple[int, int]


@dataclass(frozen=True)
class Parts:
    """What a file stores of one matrix.

    Attributes:
        name: what all the parts' names begin with, such as "model.language_model.layers.0.mlp.up_proj".
        tensors: by the rest of their names, such as ".qweight".
    """

    name: str
    tensors: Mapping[str, StoredTensor]

    @property
    def file(self) -> Path:
        return next(iter(self.tensors.values())).file

    def get(self, suffix: str) -> StoredTensor | None:
        return self.tensors.get(suffix)

    def take(self, suffix: str, shape: tuple[int, ...] | None = None) -> StoredTensor:
        """One part.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """
        if suffix not in self.tensors:
            raise CheckpointError(f"{self.file}: tensor {self.name}{suffix} is missing", DOWNLOAD_AGAIN)
        tensor = self.tensors[suffix]
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {self.name}{suffix} is {list(tensor.shape)}, not {list(shape)}",
                DOWNLOAD_AGAIN,
            )
        return tensor

    def spread(
        self,
        suffix: str,
        grid: TensorReader,
        shape: tuple[int, ...],
        blocks: tuple[Block, ...],
        column_groups: StoredTensor | None = None,
    ) -> SpreadReader:
        """A grid [..., r, c] spread over a matrix [..., R, C]; of `blocks`, the first that gives that many counts.

        Raises:
            CheckpointError: none does.
        """
        rows, columns = shape[-2:]
        for tall, wide in blocks:
            if grid.shape == (*shape[:-2], -(-rows // tall), -(-columns // wide)):
                return SpreadReader(grid, shape, (tall, wide), column_groups)
        expected = " or ".join(f"{tall} x {wide}" for tall, wide in blocks)
        raise CheckpointError(
            f"{grid.file}: tensor {self.name}{suffix} is {list(grid.shape)}, which are not blocks of {expected} "
            f"of {list(shape)}",
            DOWNLOAD_AGAIN,
        )


def collect_parts(
    stored: Mapping[str, StoredTensor], markers: tuple[str, ...], suffixes: tuple[str, ...]
) -> tuple[list[Parts], dict[str, StoredTensor]]:
    """The parts of every matrix that has one of `markers` among them, and all other tensors."""
    names = dict.fromkeys(name.removesuffix(end) for name in stored for end in markers if name.endswith(end))
    parts = [Parts(name, dict(_parts_of(stored, name, (*markers, *suffixes)))) for name in names]
    taken = {part.name + suffix for part in parts for suffix in part.tensors}
    return parts, {name: tensor for name, tensor in stored.items() if name not in taken}


def _parts_of(
    stored: Mapping[str, StoredTensor], name: str, suffixes: tuple[str, ...]
) -> Iterator[tuple[str, StoredTensor]]:
    for suffix in suffixes:
        if name + suffix in stored:
            yield suffix, stored[name + suffix]


def as_grid(stored: StoredTensor, ndim: int = 2) -> TensorReader:
    """A stored tensor with leading axes of 1 where it has fewer than `ndim`: one number for a whole matrix."""
    return StoredReader(replace(stored, shape=(1,) * (ndim - len(stored.shape)) + stored.shape))
