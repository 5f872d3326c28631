"""Smoothing: a tower's large activation channels divided, and the weights that read them multiplied, before rounding.

    norm (weight and bias / s)                  ▸ product (columns x s)
    qkv (rows of the values, and their bias / s) ▸ attention ▸ proj (columns x s)

The function stays the same: attention is linear in its values, and scales are powers of two, so that nothing is
rounded. After GELU nothing can be folded, so `linear_fc2` is left as it is. One large channel no longer takes the
integers of all others in its token.

    s_j = sqrt(max|x_j| / max_i(|W_ij| / max_k|W_ik|)),    to the nearest power of two

Source: SmoothQuant, arXiv 2211.10438, equation 4 with alpha = 0.5; weights are taken row by row, as each row has its
own scale. Knows the tower's layers and how to read a checkpoint; nothing about graphs or files.

Legend: N outputs, K input channels, C channels of a norm or of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..contract import VISION_ENCODER
from ..errors import BuildError
from ..recipe.model import Recipe
from ..recipe.quantize import Smoothed
from .calibration.layers import VISION_PREFIX, encode_pictures
from .calibration.maxima import ChannelMaxima
from .calibration.prompts import Prompts, read_prompts
from .checkpoint import Checkpoint
from .checkpoint.names import checkpoint_name
from .weights.factors import Factors

TOWER = "visual."
LARGEST_OF_NORMAL = 4.0  # about the largest of ten thousand values of a normal distribution, in standard deviations
STRIP_ROWS = 512  # of a weight that are read at a time

Log = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """A linear layer, and the layer that makes its input channels.

    Attributes:
        product: the linear layer, e.g. `visual.blocks.0.attn.qkv`.
        maker: a norm, or the `qkv` whose values a `proj` reads.
        norm: the norm before the maker, if that is no norm itself.
        repeats: how many times the product reads the maker's channels, of patches side by side.
    """

    product: str
    maker: str
    norm: str = ""
    repeats: int = 1


@dataclass(frozen=True)
class TowerSmoothing:
    """The smoothing that a recipe asks for, computed when it is first needed.

    Attributes:
        prompts: whose pictures are measured; None takes norms and weights alone.
    """

    checkpoint: Checkpoint
    settings: Smoothed
    prompts: Prompts | None
    log: Log

    @cached_property
    def factors(self) -> Mapping[str, Factors]:
        """What weights and biases are multiplied with, by parameter."""
        rows: dict[str, Tensor] = {}
        columns: dict[str, Tensor] = {}
        pairs = [pair for pair in pairs_of(self.checkpoint.config.vision_config) if not self._keeps(pair)]
        measured = self._measure() if self.prompts is not None else {}
        for pair in pairs:
            weight = f"{pair.product}.weight"
            largest = measured[pair.product] if measured else expected_maxima(self.checkpoint, pair)
            sizes = column_sizes(self.checkpoint, weight)
            scales = smoothing_scales(*(x.reshape(pair.repeats, -1).amax(0) for x in (largest, sizes)))
            columns[weight] = scales.repeat(pair.repeats)
            for parameter in (f"{pair.maker}.weight", f"{pair.maker}.bias"):
                count = shape_of(self.checkpoint, parameter)[0]
                rows[parameter] = torch.cat([torch.ones(count - len(scales)), 1 / scales])  # values are the last rows
        scales = torch.cat([*columns.values()]) if columns else torch.ones(1)
        self.log(
            f"smoothed the inputs of {len(pairs)} products of the tower, "
            f"by {float(scales.min()):g} to {float(scales.max()):g}"
        )
        return {parameter: self._factors(parameter, rows, columns) for parameter in (*rows, *columns)}

    def _keeps(self, pair: Pair) -> bool:
        """Whether the product is not quantized."""
        return any(fnmatchcase(f"{pair.product}.weight", pattern) for pattern in self.settings.keep)

    def _measure(self) -> dict[str, Tensor]:
        """The largest absolute value of every channel that a linear layer reads, by its name."""
        assert self.prompts is not None
        maxima = ChannelMaxima()
        with torch.no_grad():
            encode_pictures(self.checkpoint, list(self.prompts.prepared), maxima.watch)
        if not maxima.largest:
            raise BuildError(
                "smoothing: calibration measures pictures, and no prompt of calibration.source has one",
                'Name some: {"images": ["cat.jpg"], "ask": "What is this?"}, or write smoothing: weights',
            )
        return {TOWER + name.removeprefix(VISION_PREFIX): largest for name, largest in maxima.largest.items()}

    def _factors(self, parameter: str, rows: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> Factors:
        count = shape_of(self.checkpoint, parameter)[0]
        return Factors(rows.get(parameter, torch.ones(count)), columns.get(parameter, torch.ones(1)))


def plan_smoothings(recipe: Recipe, checkpoint: Checkpoint, log: Log) -> dict[str, TowerSmoothing]:
    """The smoothing of a recipe's tower, by precision, for those that ask for one and do not share a tower.

    Raises:
        BuildError: prompts that cannot be used.
    """
    plans: dict[str, TowerSmoothing] = {}
    for precision in recipe.every_precision if VISION_ENCODER in recipe.graphs else ():
        settings = recipe.at(precision).quantization_of(VISION_ENCODER)
        is_written = recipe.file_precision(precision, VISION_ENCODER) == precision
        if not is_written or not isinstance(settings, Smoothed) or settings.smoothing == "none":
            continue
        prompts = None
        if settings.smoothing == "calibration":
            assert recipe.calibration_dir is not None  # checked with the recipe
            prompts = read_prompts(recipe.calibration_dir, checkpoint)
        plans[precision] = TowerSmoothing(checkpoint, settings, prompts, log)
    return plans


def pairs_of(config: Any) -> Iterator[Pair]:
    """The linear layers of a tower whose input channels can be scaled.

    Args:
        config: transformers' `Qwen3VLVisionConfig`.
    """
    for index in range(config.depth):
        block = f"{TOWER}blocks.{index}"
        yield Pair(f"{block}.attn.qkv", f"{block}.norm1")
        yield Pair(f"{block}.attn.proj", f"{block}.attn.qkv", f"{block}.norm1")
        yield Pair(f"{block}.mlp.linear_fc1", f"{block}.norm2")
    yield Pair(f"{TOWER}merger.linear_fc1", f"{TOWER}merger.norm", repeats=config.spatial_merge_size**2)
    for index, _ in enumerate(config.deepstack_visual_indexes):
        merger = f"{TOWER}deepstack_merger_list.{index}"  # whose norm follows the merging
        yield Pair(f"{merger}.linear_fc1", f"{merger}.norm")


def expected_maxima(checkpoint: Checkpoint, pair: Pair) -> Tensor:
    """float32 [K], about the largest absolute value of each input channel, if what norms give is distributed normally
    before their weights and biases."""
    norm = pair.norm or pair.maker
    gain, offset = (read(checkpoint, f"{norm}.{name}") for name in ("weight", "bias"))
    if pair.norm:
        rows = slice(2 * len(gain), 3 * len(gain))  # of the values, after queries and keys
        weight, bias = (read(checkpoint, f"{pair.maker}.{name}", rows) for name in ("weight", "bias"))
        gain, offset = (weight * gain).norm(dim=1), weight @ offset + bias
    return (LARGEST_OF_NORMAL * gain.abs() + offset.abs()).repeat(pair.repeats)


def column_sizes(checkpoint: Checkpoint, parameter: str) -> Tensor:
    """float32 [K], the largest absolute value of each column of a weight [N, K] whose rows all reach 1."""
    count, width = shape_of(checkpoint, parameter)
    sizes = torch.zeros(width)
    for first in range(0, count, STRIP_ROWS):
        rows = read(checkpoint, parameter, slice(first, min(first + STRIP_ROWS, count))).abs()
        largest = rows.amax(1, keepdim=True)
        sizes = torch.maximum(sizes, (rows / torch.where(largest > 0, largest, 1.0)).amax(0))
    return sizes


def smoothing_scales(activations: Tensor, weights: Tensor) -> Tensor:
    """float32 [C], powers of two around 1: what channels of activations are divided by and columns of weights
    multiplied with; 1 for channels that are zero in either.

    Args:
        activations, weights: float32 [C], the largest absolute values.
    """
    exponents = (activations.log2() - weights.log2()) / 2
    used = exponents.isfinite()
    if not used.any():
        return torch.ones(len(exponents))
    return torch.where(used, exponents - exponents[used].median(), 0.0).round().exp2()


def read(checkpoint: Checkpoint, parameter: str, rows: slice | None = None) -> Tensor:
    """A tensor of the checkpoint, or some of its rows, in float32."""
    return checkpoint.read(checkpoint_name(parameter, checkpoint.tied), rows).to(torch.float32)


def shape_of(checkpoint: Checkpoint, parameter: str) -> tuple[int, ...]:
    """The shape of a tensor of the checkpoint."""
    return checkpoint.tensors[checkpoint_name(parameter, checkpoint.tied)].shape
