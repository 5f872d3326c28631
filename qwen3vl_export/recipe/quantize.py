"""What a recipe may say about storing weights: one strict model per method, and which graph uses which.

Rules that span several fields are `model.Recipe`'s. Knows nothing about graphs or bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .strict import Strict

Patterns = tuple[Annotated[str, Field(min_length=1)], ...]


class KeepPrecision(Strict):
    """No quantization: weights keep the recipe's dtype."""

    method: Literal["none"] = "none"
    """none: weights keep the recipe's dtype."""


class Int8Dynamic(Strict):
    """Weights in 8 bits, one scale per output; activations are quantized to 8 bits as they come, one scale a call."""

    method: Literal["int8_dynamic"]
    """int8_dynamic: 8-bit weights and activations."""
    keep: Patterns = ()
    """Weights that stay as they are, by name: "visual.merger.*"."""


class BlockSettings(Strict):
    """What both blockwise methods can be told."""

    bits: ClassVar[int]
    """Bits of one weight."""

    block_size: Literal[16, 32, 64, 128] = 32
    """Weights that share one scale."""
    symmetric: bool = True
    """Whether zero stands in the middle; if not, every block stores where its zero is."""
    algorithm: Literal["rtn", "search", "gptq"] = "rtn"
    """rtn: round to nearest. search: for each block the scale with the least squared error; needs no data. gptq: what
    changes the layer's outputs least on prompts of `calibration`; the decoder only."""
    accuracy_level: Literal[0, 1, 4] = 0
    """How onnxruntime multiplies: 1 in float32, 4 with activations in 8 bits block by block, 0 as it likes."""
    keep: Patterns = ()
    """Weights that stay as they are, by name: "lm_head.weight", "*.down_proj.weight"."""


class Int8(BlockSettings):
    """Weights in blocks of 8-bit integers."""

    method: Literal["int8"]
    """int8: 8-bit weights in blocks."""
    bits: ClassVar[int] = 8


class Int4(BlockSettings):
    """Weights in blocks of 4-bit integers."""

    method: Literal["int4"]
    """int4: 4-bit weights in blocks."""
    accept_error: bool = False
    """Needed for the vision encoder, whose features 4-bit weights change by a tenth and more."""
    bits: ClassVar[int] = 4


METHODS: dict[str, type[Strict]] = {"none": KeepPrecision, "int8_dynamic": Int8Dynamic, "int8": Int8, "int4": Int4}
Quantize = Annotated[KeepPrecision | Int8Dynamic | Int8 | Int4, Field(discriminator="method")]


class Quantization(Strict):
    """How the weights of each graph are stored."""

    vision_encoder: Quantize = KeepPrecision()
    """The vision tower."""
    embeddings: Quantize = KeepPrecision()
    """The token table; embed_tokens and embeddings share it."""
    decoder_model_merged: Quantize = KeepPrecision()
    """The language model."""


PROFILES = ("float32", "float16", "int8", "int4")  # of tolerances, from exact to coarse


def profile_of(recipe: Mapping[str, Any]) -> str:
    """The profile that the least precise part of a recipe (plain data, perhaps mistaken) calls for.

    bfloat16 asks for float32's: computing is in float32, and the published weights are bfloat16 to begin with.
    """
    plans = recipe.get("quantization")
    plans = plans.values() if isinstance(plans, dict) else ()
    methods = [str(plan.get("method")).removesuffix("_dynamic") for plan in plans if isinstance(plan, dict)]
    asked = {str(recipe.get("dtype")), *methods}
    return max((profile for profile in PROFILES if profile in asked), key=PROFILES.index, default=PROFILES[0])
