"""Calibration: a decoder's weights quantized by their effect on the activations of real prompts, layer by layer, and
the ranges of its cache.

prompts -> wide rows -> layer 0 -> layer 1 -> …

A layer is run over every prompt while the inputs of its products are summed up (`gptq.Hessian`), quantized some rows at
a time, and run once more with its dequantized weights: the next layer sees the errors of those before it and
compensates for some of them. Memory holds the activations of all prompts and either one layer's Hessians, or one of
them being factored, or one layer in float32, at any depth; results are stored on disk (`results.py`) until `weights/`
writes them. What a layer puts into its cache is measured in the second run (`cache_ranges.py`), the only one where no
weights are calibrated.

Knows transformers' decoder layers; nothing about graphs.

Legend: S tokens of a prompt, H hidden size, D maps of DeepStack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...contract import DECODER, TEXT
from ...recipe.model import Recipe
from ...recipe.quantize import BlockSettings, Int8
from ..checkpoint import Checkpoint
from ..weights.packing import Blockwise
from .cache_ranges import CacheRanges, Scales
from .experts import DOWN, GATE_UP, CalibratedExperts
from .gptq import Hessian
from .layers import TEXT_PREFIX, build_text_model, embed_prompts, loaded_weights
from .products import Products, collect_hessians
from .prompts import Prompts, read_prompts
from .ranges import Ranges, Watch, ignore
from .results import CalibrationResults

LM_HEAD = "lm_head.weight"
LAYERS_PREFIX = "language_model.layers."  # of the exporter's names
MODEL_PREFIX = "model."  # what the checkpoint's names have before the exporter's

NO_WEIGHTS = Int8(method="int8", keep=("*",))  # settings that quantize none

Log = Callable[[str], None]


@dataclass(frozen=True)
class PromptState:
    """The activations of one prompt before a layer.

    Attributes:
        hidden: [1, S, H].
        maps: D of [S, H], what DeepStack adds after the first D layers; none after them.
        rotary: cos and sin, [1, S, head size].
    """

    hidden: Tensor
    maps: tuple[Tensor, ...]
    rotary: tuple[Tensor, Tensor]

    def advance(self, layer: Any, index: int, cache: CacheRanges | None = None) -> PromptState:
        """The activations after layer `index`, whose attention is causal without a mask and gives its keys and values
        to `cache`."""
        hidden = layer(self.hidden, position_embeddings=self.rotary, attention_mask=None, past_key_values=cache)
        if index < len(self.maps):
            hidden = hidden + self.maps[index]
        return PromptState(hidden, self.maps if index + 1 < len(self.maps) else (), self.rotary)


@dataclass(frozen=True)
class DecoderCalibration:
    """The calibration that a recipe asks for, run when its results are first needed.

    Attributes:
        settings: of the weights; None if they are not calibrated.
        cache: measures what the layers put into their cache; None if that is not quantized.
        directory: of the results; created then.
    """

    checkpoint: Checkpoint
    settings: BlockSettings | None
    cache: CacheRanges | None
    scale_dtype: ir.DataType
    prompts: Prompts
    directory: Path
    log: Log

    @cached_property
    def results(self) -> CalibrationResults:
        """The integers of the weights."""
        self.directory.mkdir(parents=True)
        results = CalibrationResults(self.directory)
        settings = self.settings or NO_WEIGHTS
        return calibrate(self.checkpoint, settings, self.prompts, self.scale_dtype, results, self.log, self.cache)

    @property
    def cache_scales(self) -> list[Scales]:
        """The scales of the cache, of every layer; none if it is not quantized."""
        if self.cache is None:
            return []
        _ = self.results  # on the way to which it is measured
        return self.cache.scales


def plan_calibrations(
    recipe: Recipe, checkpoint: Checkpoint, directory: Path, log: Log
) -> dict[str, DecoderCalibration]:
    """The calibrations of a recipe's decoder, by precision, for those that ask for one and do not share a decoder.

    Raises:
        BuildError: prompts that cannot be used.
    """
    written = [name for name in recipe.every_precision if recipe.file_precision(name, DECODER) == name]
    planned = {name: plan_calibration(recipe.at(name), checkpoint, directory / f"of_{name}", log) for name in written}
    return {name: calibration for name, calibration in planned.items() if calibration is not None}


def plan_calibration(recipe: Recipe, checkpoint: Checkpoint, directory: Path, log: Log) -> DecoderCalibration | None:
    """The calibration of a recipe's decoder; None if it asks for none.

    Raises:
        BuildError: prompts that cannot be used.
    """
    if not recipe.is_calibrated:
        return None
    assert recipe.calibration_dir is not None  # checked with the recipe
    weights = recipe.quantization_of(DECODER)
    settings = weights if isinstance(weights, BlockSettings) and weights.algorithm == "gptq" else None
    cache = None if recipe.quantization.cache.method == "none" else CacheRanges()
    scale_dtype = ir.DataType.FLOAT16 if recipe.compute_dtype == "float16" else ir.DataType.FLOAT
    prompts = read_prompts(recipe.calibration_dir, checkpoint)
    return DecoderCalibration(checkpoint, settings, cache, scale_dtype, prompts, directory, log)


def calibrate(
    checkpoint: Checkpoint,
    settings: BlockSettings,
    prompts: Prompts,
    scale_dtype: ir.DataType,
    results: CalibrationResults,
    log: Log,
    cache: CacheRanges | None = None,
) -> CalibrationResults:
    """Quantize every product of a decoder that the settings do not keep, and let `cache` measure what the layers put
    into theirs; returns `results`, filled."""
    packing = Blockwise(settings.bits, settings.block_size, settings.symmetric, True, scale_dtype)
    ranges = Ranges()
    watch = ranges.watch if scale_dtype == ir.DataType.FLOAT16 else ignore
    quantizer = _LayerQuantizer(Products(checkpoint, packing, settings.keep, results), watch, cache, log)
    with torch.no_grad():
        model = build_text_model(checkpoint)
        states = [*_initial_states(checkpoint, model, prompts, watch)]
        log(f"calibrating with {len(states)} prompts, {prompts.tokens} tokens")
        for index, layer in enumerate(model.layers):
            states = quantizer.quantize_layer(layer, index, states)
        quantizer.quantize_head(model.norm, states)
    if (warning := ranges.warning()) is not None:
        log(warning)
    return results


def _initial_states(checkpoint: Checkpoint, model: Any, prompts: Prompts, watch: Watch) -> Iterator[PromptState]:
    size = checkpoint.facts.hidden_size
    for prompt, rows in zip(prompts.prepared, embed_prompts(checkpoint, list(prompts.prepared), watch), strict=True):
        hidden, *maps = torch.split(rows, size, dim=-1)
        rotary = model.rotary_emb(hidden, torch.from_numpy(prompt.position_ids))
        yield PromptState(hidden[None], tuple(maps), rotary)


@dataclass(frozen=True)
class _LayerQuantizer:
    """Quantizes the layers of one decoder in turn, and its head."""

    products: Products
    watch: Watch
    cache: CacheRanges | None
    log: Log

    def quantize_layer(self, layer: Any, index: int, states: list[PromptState]) -> list[PromptState]:
        """Quantize a layer from the inputs that its float weights give, and run it with the dequantized ones."""
        prefix = f"{LAYERS_PREFIX}{index}."
        products = self.products.select(layer, prefix)
        experts = self._replace_experts(layer, index)
        excluded = {MODEL_PREFIX + name for name in products}
        loaded = partial(loaded_weights, layer, self.products.checkpoint, MODEL_PREFIX + prefix, excluded)
        watched = self.watch(layer, MODEL_PREFIX + prefix)
        errors: dict[str, float] = {}
        if products or (experts is not None and experts.parameters):
            with loaded(), self.products.read_on_call(products), collect_hessians(products) as hessians, watched:
                for state in states:
                    state.advance(layer, index)
            if experts is not None:
                experts.quantize(self.log, f"layer {index}")
            errors = self.products.quantize(hessians)
            watched = nullcontext()
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            label = worst.removeprefix(prefix).removesuffix(".weight")
            mean = sum(errors.values()) / len(errors)
            self.log(
                f"calibrated layer {index}: relative error of the outputs {mean:.3g} on average, "
                f"{errors[worst]:.3g} at most ({label})"
            )
        with loaded(), watched:
            self.products.load_dequantized(products)
            if self.cache is not None:
                self.cache.bound_keys(index, layer.self_attn.k_norm.weight)
            return [state.advance(layer, index, self.cache) for state in states]

    def _replace_experts(self, layer: Any, index: int) -> CalibratedExperts | None:
        """Let `CalibratedExperts` run in place of a layer's experts, if it has any."""
        module = getattr(layer.mlp, "experts", None)
        if module is None:
            return None
        names = {stack: f"{LAYERS_PREFIX}{index}.mlp.experts.{stack}" for stack in (GATE_UP, DOWN)}
        tensors = {stack: MODEL_PREFIX + name for stack, name in names.items()}
        quantized = {stack: name for stack, name in names.items() if not self.products.keeps(name)}
        products = self.products
        experts = CalibratedExperts(products.checkpoint, tensors, quantized, products.packing, products.results)
        module.calibrated = experts
        return experts

    def quantize_head(self, norm: nn.Module, states: list[PromptState]) -> None:
        """Quantize the output head."""
        if self.products.checkpoint.facts.head != TEXT or self.products.keeps(LM_HEAD):
            return
        hessian = Hessian(self.products.checkpoint.facts.hidden_size)
        name = f"{TEXT_PREFIX}norm."
        with loaded_weights(norm, self.products.checkpoint, name), self.watch(norm, name):
            for state in states:
                hessian.add(norm(state.hidden))
        (error,) = self.products.quantize({LM_HEAD: hessian}).values()
        self.log(f"calibrated the output head: relative error of the outputs {error:.3g}")
