"""Calibration: a decoder's weights quantized by what they do to the activations of real prompts, layer by layer.

prompts -> wide rows -> layer 0 -> layer 1 -> …

A layer is run over every prompt while the inputs of its products are summed up (`gptq.Hessian`), quantized some rows at
a time, and run once more with what its integers stand for: the next layer sees the errors of those before it and makes
up for some of them. Memory holds the activations of all prompts and either one layer's Hessians, or one of them being
factored, or one layer in float32, whatever the depth; results lie on disk (`results.py`) until `weights/` writes them.

Knows transformers' decoder layers; nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...contract import DECODER
from ...recipe.model import Recipe
from ...recipe.quantize import Blocks
from ..checkpoint import Checkpoint
from ..weights.packing import Blockwise
from .experts import PARTS, Experts
from .gptq import Hessian
from .layers import TEXT, filled, text_model, wide_rows
from .products import Products, watched
from .prompts import Prompts, read_prompts
from .results import Results

LM_HEAD = "lm_head.weight"
LAYERS = "language_model.layers."  # the exporter's names
MODEL = "model."  # what the checkpoint's names have before them

Log = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """One prompt on its way through the layers.

    Attributes:
        hidden: [1, S, H].
        maps: D of [S, H], what DeepStack adds after the first D layers; none after them.
        rotary: cos and sin, [1, S, E].
    """

    hidden: Tensor
    maps: tuple[Tensor, ...]
    rotary: tuple[Tensor, Tensor]

    def through(self, layer: Any, index: int) -> State:
        """After layer `index`; causal by itself, since no mask is given."""
        hidden = layer(self.hidden, position_embeddings=self.rotary, attention_mask=None)
        if index < len(self.maps):
            hidden = hidden + self.maps[index]
        return State(hidden, self.maps if index + 1 < len(self.maps) else (), self.rotary)


@dataclass(frozen=True)
class Calibration:
    """The calibration that a recipe asks for, carried out when its results are first asked for.

    Attributes:
        directory: for the results; made then.
    """

    checkpoint: Checkpoint
    plan: Blocks
    scales: ir.DataType
    prompts: Prompts
    directory: Path
    log: Log

    @cached_property
    def results(self) -> Results:
        self.directory.mkdir(parents=True)
        return calibrate(self.checkpoint, self.plan, self.prompts, self.scales, Results(self.directory), self.log)

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"prompts": len(self.prompts.prepared), "tokens": self.prompts.tokens, "sha256": self.prompts.sha256}


def calibrations_of(recipe: Recipe, checkpoint: Checkpoint, directory: Path, log: Log) -> dict[str, Calibration]:
    """The calibrations of a recipe's decoder by precision, of those that ask for one and write their own.

    Raises:
        BuildError: prompts that cannot be used.
    """
    written = [name for name in recipe.every_precision if recipe.written_for(name, DECODER) == name]
    found = {name: calibration_of(recipe.at(name), checkpoint, directory / f"of_{name}", log) for name in written}
    return {name: one for name, one in found.items() if one is not None}


def calibration_of(recipe: Recipe, checkpoint: Checkpoint, directory: Path, log: Log) -> Calibration | None:
    """The calibration of a recipe's decoder; None if it asks for none.

    Raises:
        BuildError: prompts that cannot be used.
    """
    plan = recipe.quantize(DECODER)
    if DECODER not in recipe.graphs or not isinstance(plan, Blocks) or plan.algorithm != "gptq":
        return None
    assert recipe.calibration_dir is not None  # the recipe is checked
    scales = ir.DataType.FLOAT16 if recipe.compute_dtype == "float16" else ir.DataType.FLOAT
    prompts = read_prompts(recipe.calibration_dir, checkpoint)
    return Calibration(checkpoint, plan, scales, prompts, directory, log)


def calibrate(
    checkpoint: Checkpoint, plan: Blocks, prompts: Prompts, scales: ir.DataType, results: Results, log: Log
) -> Results:
    """Quantize every product of a decoder that the plan does not keep; `scales` is the dtype of the scales."""
    packing = Blockwise(plan.bits, plan.block_size, plan.symmetric, True, scales)
    layers = _Layers(Products(checkpoint, packing, plan.keep, results), log)
    with torch.no_grad():
        model = text_model(checkpoint)
        states = [*_states(checkpoint, model, prompts)]
        log(f"calibrating with {len(states)} prompts, {prompts.tokens} tokens")
        for index, layer in enumerate(model.layers):
            states = layers.through(layer, index, states)
        layers.head(model.norm, states)
    return results


def _states(checkpoint: Checkpoint, model: Any, prompts: Prompts) -> Iterator[State]:
    size = checkpoint.facts.hidden_size
    for prompt, rows in zip(prompts.prepared, wide_rows(checkpoint, list(prompts.prepared)), strict=True):
        hidden, *maps = torch.split(rows, size, dim=-1)
        rotary = model.rotary_emb(hidden, torch.from_numpy(prompt.position_ids))
        yield State(hidden[None], tuple(maps), rotary)


@dataclass(frozen=True)
class _Layers:
    """The layers of one decoder and its head, quantized in turn."""

    products: Products
    log: Log

    def through(self, layer: Any, index: int, states: list[State]) -> list[State]:
        """Quantize a layer, all from the inputs it gets before any of it is, and run it as it then is."""
        products = self.products.of(layer, f"{LAYERS}{index}.")
        experts = self._experts(layer, index)
        layer_filled = partial(filled, layer, self.products.checkpoint, f"{MODEL}{LAYERS}{index}.")
        apart = {MODEL + name for name in products}
        with layer_filled(but=apart), self.products.reading(products), watched(products) as hessians:
            for state in states:
                state.through(layer, index)
        if experts is not None:
            experts.quantize(self.log, f"layer {index}")
        errors = self.products.quantize(hessians)
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            named = worst.removeprefix(f"{LAYERS}{index}.").removesuffix(".weight")
            mean = sum(errors.values()) / len(errors)
            self.log(f"calibrated layer {index}: outputs off by {mean:.3g} in the mean, {errors[worst]:.3g} ({named})")
        with layer_filled(but=apart):
            self.products.restore(products)
            return [state.through(layer, index) for state in states]

    def _experts(self, layer: Any, index: int) -> Experts | None:
        """What stands in for a layer's experts, if it has any."""
        module = getattr(layer.mlp, "experts", None)
        if module is None:
            return None
        names = {part: f"{LAYERS}{index}.mlp.experts.{part}" for part in PARTS}
        tensors = {part: MODEL + name for part, name in names.items()}
        quantized = {part: name for part, name in names.items() if not self.products.kept(name)}
        found = Experts(self.products.checkpoint, tensors, quantized, self.products.packing, self.products.results)
        module.calibrated = found
        return found

    def head(self, norm: nn.Module, states: list[State]) -> None:
        """Quantize the output head."""
        if self.products.kept(LM_HEAD):
            return
        hessian = Hessian(self.products.checkpoint.facts.hidden_size)
        with filled(norm, self.products.checkpoint, f"{TEXT}norm."):
            for state in states:
                hessian.add(norm(state.hidden))
        (error,) = self.products.quantize({LM_HEAD: hessian}).values()
        self.log(f"calibrated the output head: outputs off by {error:.3g}")
