"""How a recipe describes quantization: one strict model per method, and the method of each graph and of the cache.

Rules that span several fields are in `model.Recipe`. Knows nothing about graphs or bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .strict import StrictModel

Patterns = tuple[Annotated[str, Field(min_length=1)], ...]


class KeepPrecision(StrictModel):
    """No quantization: weights keep the recipe's dtype."""

    method: Literal["none"] = "none"
    """none: weights keep the recipe's dtype."""


class Smoothed(StrictModel):
    """What methods share whose weights in 8 bits can be smoothed."""

    smoothing: Literal["none", "weights", "calibration"] = "none"
    """Channels of activations that are larger than others are made smaller and the weights that read them larger, by
    powers of two; the vision encoder only. weights: as norms and weights suggest, needs no data. calibration: as
    measured on the pictures of `calibration`."""
    keep: Patterns = ()
    """Weights that are not quantized, by name: "visual.merger.*"."""


class Int8Dynamic(Smoothed):
    """8-bit weights, one scale per output; activations are quantized to 8 bits at run time."""

    method: Literal["int8_dynamic"]
    """int8_dynamic: 8-bit weights and activations."""
    activations: Literal["per_tensor", "per_token"] = "per_tensor"
    """What shares a scale of activations: per_tensor, all of a call; per_token, those of a token."""


class BlockSettings(StrictModel):
    """Settings of both blockwise methods."""

    bits: ClassVar[int]
    """Bits of one weight."""

    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share one scale."""
    symmetric: bool = True
    """Whether zero is the middle of the range; if not, every block stores a zero point."""
    algorithm: Literal["rtn", "search", "gptq"] = "rtn"
    """rtn: round to nearest. search: for each block the scale with the least squared error; needs no data. gptq: the
    integers that change the layer's outputs least on the prompts of `calibration`; the decoder only."""
    accuracy_level: Literal[0, 1, 4] = 0
    """How onnxruntime multiplies: 1 in float32, 4 with activations in 8 bits block by block, 0 its own choice."""
    keep: Patterns = ()
    """Weights that are not quantized, by name: "lm_head.weight", "*.down_proj.weight"."""


class Int8(BlockSettings, Smoothed):
    """Weights in blocks of 8-bit integers."""

    method: Literal["int8"]
    """int8: 8-bit weights in blocks."""
    bits: ClassVar[int] = 8


class Int4(BlockSettings):
    """Weights in blocks of 4-bit integers."""

    method: Literal["int4"]
    """int4: 4-bit weights in blocks."""
    accept_error: bool = False
    """Required for the vision encoder, whose features 4-bit weights change by a tenth and more."""
    bits: ClassVar[int] = 4


class FromSource(StrictModel):
    """Weights that the checkpoint holds as integers, carried over; the others keep the recipe's dtype."""

    method: Literal["source"]
    """source: the integers, scales and zero points of a quantized checkpoint, unchanged."""
    accuracy_level: Literal[0, 1, 4] = 0
    """How onnxruntime multiplies: 1 in float32, 4 with activations in 8 bits block by block, 0 its own choice."""
    keep: Patterns = ()
    """Weights that are restored in the recipe's dtype instead, by name: "*.down_proj.weight"."""


METHODS: dict[str, type[StrictModel]] = {
    "none": KeepPrecision,
    "int8_dynamic": Int8Dynamic,
    "int8": Int8,
    "int4": Int4,
    "source": FromSource,
}
MethodSettings = Annotated[KeepPrecision | Int8Dynamic | Int8 | Int4 | FromSource, Field(discriminator="method")]


class FloatCache(StrictModel):
    """No quantization: keys and values are stored as the decoder computes them."""

    method: Literal["none"] = "none"
    """none: keys and values keep the dtype that the decoder computes in."""


class Int8Cache(StrictModel):
    """Keys and values in 8 bits, one scale for each channel of a head; `target: ort`."""

    method: Literal["int8"]
    """int8: a quarter of float32's memory, with scales from the prompts of `calibration`."""


CACHE_METHODS: dict[str, type[StrictModel]] = {"none": FloatCache, "int8": Int8Cache}
CacheSettings = Annotated[FloatCache | Int8Cache, Field(discriminator="method")]


class Quantization(StrictModel):
    """How the weights of each graph are stored, and the cache while it runs."""

    vision_encoder: MethodSettings = KeepPrecision()
    """The vision tower."""
    embeddings: MethodSettings = KeepPrecision()
    """The token table; embed_tokens and embeddings share it."""
    decoder_model_merged: MethodSettings = KeepPrecision()
    """The language model."""
    cache: CacheSettings = FloatCache()
    """The keys and values of the tokens so far."""


PROFILES = ("float32", "float16", "int8", "int4")  # of tolerances, from exact to coarse


def profile_of(recipe: Mapping[str, Any]) -> str:
    """The tolerance profile of the least precise part of a recipe (plain data, not validated).

    bfloat16 has float32's: computing is in float32, and the published weights are bfloat16 to begin with. So has
    `source`, which rounds nothing, unless activations are in 8 bits.
    """
    quantization = recipe.get("quantization")
    blocks = quantization.values() if isinstance(quantization, dict) else ()
    precisions = {str(recipe.get("dtype")), *(_profile_of_block(block) for block in blocks if isinstance(block, dict))}
    return max((profile for profile in PROFILES if profile in precisions), key=PROFILES.index, default=PROFILES[0])


def _profile_of_block(block: Mapping[str, Any]) -> str:
    method = str(block.get("method")).removesuffix("_dynamic")
    return "int8" if method == "source" and block.get("accuracy_level") == 4 else method
