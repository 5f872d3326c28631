"""The form of a recipe in a manifest: the keys that readers of artifacts rely on.

`recipe/model.py` has all keys, and what they mean; it checks recipes before a build, which a manifest is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from .contract import HEADS, TEXT, TIERS, Size
from .json_form import Like, Line, Matching, OneOf
from .promise import Json

PrecisionName = Annotated[str, Matching("[a-z0-9]{1,16}", "the name of a precision")]


@dataclass(frozen=True)
class WeightForm:
    """The form of a plan for the weights of one graph, of which a method sets what it knows."""

    method: Annotated[str, OneOf(("none", "int8_dynamic", "int8", "int4", "source"))]
    algorithm: Line = ""
    accuracy_level: int = 0


@dataclass(frozen=True)
class CacheForm:
    """The form of a plan for the cache."""

    method: Annotated[str, OneOf(("none", "int8"))]


@dataclass(frozen=True)
class QuantizationForm:
    """The form of a recipe's `quantization`."""

    vision_encoder: Annotated[Json, Like(WeightForm)]
    embeddings: Annotated[Json, Like(WeightForm)]
    decoder_model_merged: Annotated[Json, Like(WeightForm)]
    cache: Annotated[Json, Like(CacheForm)] | None = None


@dataclass(frozen=True)
class VisionForm:
    """The form of a recipe's `vision`."""

    grid: Annotated[str, OneOf(("dynamic", "fixed", "buckets"))]
    sizes: tuple[tuple[Size, Size], ...]


@dataclass(frozen=True)
class CostForm:
    """The form of a recipe's `parity.cost`."""

    mean_kl: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True)
class ParityForm:
    """The form of a recipe's `parity`."""

    matrix: Annotated[str, OneOf(TIERS)]
    tolerances: Line
    held_out: bool
    cost: Annotated[Json, Like(CostForm)] | None = None


@dataclass(frozen=True)
class PackagingForm:
    """The form of a recipe's `packaging`."""

    runtimes: tuple[Annotated[str, Matching("[a-z][a-z0-9.-]*", "the name of a runtime")], ...]


@dataclass(frozen=True)
class PrecisionForm:
    """The form of one of a recipe's `precisions`."""

    dtype: Line
    quantization: Annotated[Json, Like(QuantizationForm)]
    tolerances: Line


@dataclass(frozen=True)
class RecipeForm:
    """The form of a recipe in a manifest: the keys that readers of artifacts rely on. `recipe/model.py` has them all,
    and what they mean; it checks recipes before a build, which a manifest is not."""

    name: Annotated[str, Matching("[a-z0-9][a-z0-9._-]{0,200}", "the name of an artifact")]
    target: Line
    dtype: Line
    vision: Annotated[Json, Like(VisionForm)]
    graphs: tuple[Line, ...]
    quantization: Annotated[Json, Like(QuantizationForm)]
    parity: Annotated[Json, Like(ParityForm)]
    packaging: Annotated[Json, Like(PackagingForm)]
    head: Annotated[str, OneOf(HEADS)] = TEXT
    precisions: Mapping[PrecisionName, Annotated[Json, Like(PrecisionForm)]] = field(default_factory=dict)
