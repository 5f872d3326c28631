"""Rules that span several fields of a recipe: what cannot be combined, each with the field to change.

Knows a validated recipe; nothing about YAML, files on disk or the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import TEXT
from ..packaging import RUNTIMES, loadable_runtimes
from .quantize import PROFILES, profile_of
from .strict import FieldConflict

if TYPE_CHECKING:
    from .model import Recipe

OLDEST_WITH_INT8_CACHE = "1.27"  # of onnxruntime; 1.26 has no kernel that reads a quantized cache on a CPU


def check_fields(recipe: Recipe) -> None:
    """Check that the fields of a recipe agree, in each of its precisions.

    Raises:
        FieldConflict: they do not; it names the field to change.
    """
    if len(set(recipe.graphs)) != len(recipe.graphs):
        raise FieldConflict("graphs", "a graph appears twice", "Remove one")
    for name in recipe.every_precision:
        check_precision(recipe.at(name), f"precisions.{name}." if name else "")
    for runtime in recipe.packaging.runtimes:
        if recipe.head not in (None, *RUNTIMES[runtime].heads):
            raise FieldConflict(
                "packaging.runtimes",
                f"{runtime} only answers, and the head is {recipe.head}",
                f"Leave {runtime} out, or packaging.runtimes",
            )
        if runtime not in loadable_runtimes(recipe.graphs, recipe.vision.grid, recipe.head or TEXT):
            needed = [name for name in RUNTIMES[runtime].graphs if name not in recipe.graphs]
            requirement = f"{needed[0]}, which is not exported" if needed else "a vision encoder for any picture size"
            raise FieldConflict(
                "packaging.runtimes",
                f"{runtime} needs {requirement}",
                f"Leave {runtime} out, or packaging.runtimes",
            )
    if recipe.parity.held_out and recipe.head not in (None, TEXT):
        raise FieldConflict(
            "parity.held_out", f"the exam asks questions, and the head is {recipe.head}", "Set held_out: false"
        )
    if recipe.parity.cost is not None and recipe.parity.cost.has_limits and recipe.head not in (None, TEXT):
        raise FieldConflict(
            "parity.cost",
            f"its limits are on logits of the next token, and the head is {recipe.head}",
            "Write cost: {}, which has none, or leave it out",
        )
    if recipe.parity.held_out and recipe.missing_graphs:
        raise FieldConflict(
            "parity.held_out",
            f"the exam needs every graph, {recipe.missing_graphs[0]} is not exported",
            "Set held_out: false",
        )


def check_precision(recipe: Recipe, prefix: str) -> None:
    """Check the fields of one precision; `prefix` is the path of its keys in the recipe."""
    needed, chosen = profile_of(recipe.model_dump()), recipe.parity.tolerances
    if chosen in PROFILES and PROFILES.index(chosen) < PROFILES.index(needed):
        raise FieldConflict(
            f"{prefix}tolerances" if prefix else "parity.tolerances",
            f"{needed} cannot meet the {chosen} profile",
            f"Write tolerances: {needed}, or leave it out",
        )
    quantization = recipe.quantization
    if quantization.vision_encoder.method == "int4" and not quantization.vision_encoder.accept_error:
        raise FieldConflict(
            f"{prefix}quantization.vision_encoder.accept_error",
            "4-bit weights change the features of the vision tower by a tenth and more",
            "Use method: int8, or accept it with accept_error: true",
        )
    if quantization.embeddings.method == "int8_dynamic":
        raise FieldConflict(
            f"{prefix}quantization.embeddings.method",
            "int8_dynamic quantizes products, and a table is only looked up",
            "Use method: int8",
        )
    for graph in ("vision_encoder", "decoder_model_merged"):
        if getattr(quantization, graph).method == "int8_dynamic" and recipe.dtype == "float16":
            raise FieldConflict(
                f"{prefix}quantization.{graph}.method",
                "int8_dynamic takes activations in float32",
                "Write dtype: float32, or method: int8",
            )
    check_cache(recipe, prefix)
    check_calibration(recipe, prefix)
    if recipe.target != "portable":
        return
    if recipe.experts == "operator":
        raise FieldConflict(
            f"{prefix}experts", "no standard operator computes a mixture of experts", "Write experts: auto"
        )
    for graph in ("vision_encoder", "embeddings", "decoder_model_merged"):
        settings = getattr(quantization, graph)
        if settings.method == "source":
            raise FieldConflict(
                f"{prefix}quantization.{graph}.method",
                "integers of a checkpoint go into MatMulNBits, an operator of the ort target",
                "Write target: ort, or method: int4, which restores and rounds them",
            )
        if graph != "embeddings" and settings.method in ("int8", "int4") and not settings.symmetric:
            raise FieldConflict(
                f"{prefix}quantization.{graph}.symmetric",
                "the portable target has symmetric blocks only",
                "Remove it",
            )


def check_calibration(recipe: Recipe, prefix: str) -> None:
    """Check that there are prompts for what is calibrated, and that only that asks for them."""
    for graph in ("embeddings", "decoder_model_merged"):
        if getattr(getattr(recipe.quantization, graph), "smoothing", "none") != "none":
            raise FieldConflict(
                f"{prefix}quantization.{graph}.smoothing", "only the vision encoder is smoothed", "Remove it"
            )
    if getattr(recipe.quantization.vision_encoder, "smoothing", "none") == "calibration" and recipe.calibration is None:
        raise FieldConflict(
            "calibration",
            "smoothing: calibration needs prompts with pictures",
            "Write calibration: {source: ./calibration}, or smoothing: weights, which needs none",
        )
    for graph in ("vision_encoder", "embeddings"):
        if getattr(getattr(recipe.quantization, graph), "algorithm", "") == "gptq":
            raise FieldConflict(
                f"{prefix}quantization.{graph}.algorithm",
                "only the decoder is calibrated",
                "Write algorithm: search",
            )
    if recipe.is_calibrated and recipe.calibration is None:
        cache = recipe.quantization.cache.method
        raise FieldConflict(
            "calibration",
            f"{'algorithm: gptq' if cache == 'none' else f'cache: {cache}'} needs prompts",
            "Write calibration: {source: ./calibration}",
        )


def check_cache(recipe: Recipe, prefix: str) -> None:
    """Check that the recipe's graphs can have the cache that it asks for."""
    if recipe.quantization.cache.method == "none":
        return
    key = f"{prefix}quantization.cache.method"
    if recipe.target == "portable":
        raise FieldConflict(key, "no standard operator reads a quantized cache", "Write target: ort, or method: none")
    if recipe.packaging.provider != "cpu":
        provider = recipe.packaging.provider
        raise FieldConflict(key, f"only a CPU is known to read it, the provider is {provider}", "Write method: none")
    if recipe.head not in (None, TEXT):
        raise FieldConflict(key, f"the head is {recipe.head}, which reads every prompt at once", "Write method: none")
    written, oldest = (
        tuple(map(int, version.split("."))) for version in (recipe.min_onnxruntime, OLDEST_WITH_INT8_CACHE)
    )
    if written < oldest:
        raise FieldConflict(
            "min_onnxruntime",
            f"a cache in 8 bits needs onnxruntime {OLDEST_WITH_INT8_CACHE}, this says {recipe.min_onnxruntime}",
            f'Write min_onnxruntime: "{OLDEST_WITH_INT8_CACHE}"',
        )
