"""Calibration: a decoder's weights quantized by what they do to the activations of real prompts, layer by layer.

prompts -> wide rows -> layer 0 -> layer 1 -> …

A layer is read, run over every prompt while the inputs of its products are summed up (`gptq.Hessian`), quantized, run
once more with what its integers stand for, and forgotten: the next layer sees the errors of those before it and makes
up for some of them. Memory holds one layer in float32, its Hessians and the activations of all prompts, whatever the
depth; results lie on disk (`results.py`) until `weights/` writes them.

Knows transformers' decoder layers; nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..contract import DECODER
from ..recipe.model import Recipe
from ..recipe.quantize import Blocks
from ..submodules import checkpoint_name
from ..weights.packing import TORCH, Blockwise
from .experts import PARTS, Experts
from .gptq import Factor, Hessian, factor, output_error, quantize_rows
from .layers import TEXT, filled, text_model, wide_rows
from .prompts import Prompts, read_prompts
from .results import Results

LM_HEAD = "lm_head.weight"
SLICE_ROWS = 8192  # of the output head at a time

Log = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """One prompt on its way through the layers.

    Attributes:
        hidden: [1, S, H].
        maps: [D, S, H], what DeepStack adds after the first D layers.
        rotary: cos and sin, [1, S, E].
    """

    hidden: Tensor
    maps: Tensor
    rotary: tuple[Tensor, Tensor]

    def through(self, layer: Any, index: int) -> State:
        """After layer `index`; causal by itself, since no mask is given."""
        hidden = layer(self.hidden, position_embeddings=self.rotary, attention_mask=None)
        hidden = hidden + self.maps[index] if index < len(self.maps) else hidden
        return State(hidden, self.maps, self.rotary)


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
    work = _Work(checkpoint, packing, plan.keep, results, log)
    with torch.no_grad():
        model = text_model(checkpoint)
        states = [*_states(checkpoint, model, prompts)]
        log(f"calibrating with {len(states)} prompts, {prompts.tokens} tokens")
        for index, layer in enumerate(model.layers):
            with filled(layer, checkpoint, f"{TEXT}layers.{index}."):
                work.layer(layer, index, states)
                states = [state.through(layer, index) for state in states]
        work.head(model.norm, states)
    return results


def _states(checkpoint: Checkpoint, model: Any, prompts: Prompts) -> Iterator[State]:
    size = checkpoint.facts.hidden_size
    for prompt, rows in zip(prompts.prepared, wide_rows(checkpoint, list(prompts.prepared)), strict=True):
        hidden, *maps = torch.split(rows, size, dim=-1)
        rotary = model.rotary_emb(hidden, torch.from_numpy(prompt.position_ids))
        yield State(hidden[None], torch.stack(maps), rotary)


@dataclass(frozen=True)
class _Work:
    """What every weight is quantized with, and where the results go."""

    checkpoint: Checkpoint
    packing: Blockwise
    keep: tuple[str, ...]
    results: Results
    log: Log

    def kept(self, parameter: str) -> bool:
        return any(fnmatchcase(parameter, pattern) for pattern in self.keep)

    def layer(self, layer: nn.Module, index: int, states: list[State]) -> None:
        """Quantize a layer's products in place, all from the inputs they get before any of them is."""
        products = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and not self.kept(f"language_model.layers.{index}.{name}.weight")
        }
        experts = self.experts(layer, index)
        with _watched(products) as hessians:
            for state in states:
                state.through(layer, index)
        if experts is not None:
            experts.quantize(self.log, f"layer {index}")
        errors = {}
        for hessian in dict.fromkeys(hessians.values()):
            of = factor(hessian)
            for name in (name for name in products if hessians[name] is hessian):
                module = products[name]
                weight = module.weight
                parameter = f"language_model.layers.{index}.{name}.weight"
                self.results.create(parameter, module.out_features, module.in_features, self.packing)
                restored = self.quantize(parameter, weight, of, 0)
                errors[name] = output_error(weight, restored, hessian)
                weight.copy_(restored)
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            mean = sum(errors.values()) / len(errors)
            self.log(f"calibrated layer {index}: outputs off by {mean:.3g} in the mean, {errors[worst]:.3g} ({worst})")

    def experts(self, layer: Any, index: int) -> Experts | None:
        """What stands in for a layer's experts, if it has any."""
        module = getattr(layer.mlp, "experts", None)
        if module is None:
            return None
        names = {part: f"language_model.layers.{index}.mlp.experts.{part}" for part in PARTS}
        tensors = {part: f"model.{name}" for part, name in names.items()}
        quantized = {part: name for part, name in names.items() if not self.kept(name)}
        found = Experts(self.checkpoint, tensors, quantized, self.packing, self.results)
        module.calibrated = found
        return found

    def head(self, norm: nn.Module, states: list[State]) -> None:
        """The output head, some rows at a time."""
        if self.kept(LM_HEAD):
            return
        tensor = checkpoint_name(LM_HEAD, bool(self.checkpoint.config.tie_word_embeddings))
        count, width = self.checkpoint.tensors[tensor].shape
        hessian = Hessian(width)
        with filled(norm, self.checkpoint, f"{TEXT}norm."):
            for state in states:
                hessian.add(norm(state.hidden))
        of = factor(hessian)
        self.results.create(LM_HEAD, count, width, self.packing)
        for first in range(0, count, SLICE_ROWS):
            rows = self.checkpoint.read(tensor, slice(first, min(first + SLICE_ROWS, count))).to(torch.float32)
            self.quantize(LM_HEAD, rows, of, first)

    def quantize(self, parameter: str, rows: Tensor, of: Factor, first: int) -> Tensor:
        """Quantize rows of a weight that begin with row `first`; returns what they stand for."""
        how = self.packing
        blocks = quantize_rows(rows, of, how.bits, how.block_size, how.symmetric, TORCH[how.scales])
        self.results.write(parameter, first, blocks)
        return blocks.restored


@contextmanager
def _watched(modules: dict[str, nn.Linear]) -> Iterator[dict[str, Hessian]]:
    """The Hessian of each module's inputs, filled as it runs; modules that are given the same tensor share one."""
    hessians: dict[str, Hessian] = {}
    seen: list[Any] = [None, None]  # the last input, and its Hessian

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Linear, given: tuple[Tensor, ...]) -> None:
            if given[0] is seen[0]:
                hessians[name] = seen[1]
                return
            own = hessians.setdefault(name, Hessian(module.in_features))
            own.add(given[0])
            seen[:] = given[0], own

        return see

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield hessians
