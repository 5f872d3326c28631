"""transformers' modules with the weights of one layer in memory: modules on the meta device, filled when they run.

Knows how a checkpoint's tensors get into modules and out again; nothing about quantization.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.positions import visual_tokens
from ...runtime.prepare import Prepared
from ..checkpoint import Checkpoint
from ..submodules import MODELS
from .experts import WATCHED

VISION, TEXT = "model.visual.", "model.language_model."
PATCHES = 8192  # of the pictures that go through the tower together: bounds the memory of its activations


def fill(
    module: nn.Module, checkpoint: Checkpoint, prefix: str, recurse: bool = True, but: Collection[str] = ()
) -> None:
    """Give a module on the meta device the checkpoint's values, in float32; but no stacks of experts (`experts.py`).

    Args:
        but: the checkpoint's names of tensors that are left out too.
    """
    for name, _ in list(module.named_parameters(recurse=recurse)):
        if ".experts." in name or prefix + name in but:
            continue
        owner, _, own = name.rpartition(".")
        value = checkpoint.read(prefix + name).to(torch.float32).contiguous()
        setattr(module.get_submodule(owner), own, nn.Parameter(value, requires_grad=False))


def forget(module: nn.Module, recurse: bool = True) -> None:
    """Take the values out again."""
    for name, parameter in list(module.named_parameters(recurse=recurse)):
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, nn.Parameter(parameter.to("meta"), requires_grad=False))


@contextmanager
def filled(module: nn.Module, checkpoint: Checkpoint, prefix: str, but: Collection[str] = ()) -> Iterator[None]:
    """Inside, the module has its weights; the arguments are those of `fill`."""
    fill(module, checkpoint, prefix, but=but)
    try:
        yield
    finally:
        forget(module)


def text_model(checkpoint: Checkpoint) -> Any:
    """transformers' language model without weights."""
    config = copy.deepcopy(checkpoint.config.text_config)
    config._attn_implementation = "sdpa"
    config._experts_implementation = WATCHED
    with torch.device("meta"):
        model = MODELS[checkpoint.facts.model_type][1](config).eval()
    model.rotary_emb = type(model.rotary_emb)(config)  # its frequencies are computed and not read
    return model


def vision_features(checkpoint: Checkpoint, prompts: list[Prepared]) -> list[Tensor]:
    """Wide features [N, (1 + D) * H] of each prompt's pictures; one module's weights at a time."""
    config = copy.deepcopy(checkpoint.config.vision_config)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        tower = MODELS[checkpoint.facts.model_type][0](config).eval()
    tower.rotary_pos_emb = type(tower.rotary_pos_emb)(config)
    found: list[Tensor] = []
    with ExitStack() as stack:
        for name, module in tower.named_modules():
            if list(module.parameters(recurse=False)):
                stack.callback(_filling(module, checkpoint, f"{VISION}{name}."))
        for batch in _batches(prompts):
            found += _encode(tower, batch)
    return found


def _filling(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> Any:
    """Fill a module whenever it is called; returns what ends that."""
    before = module.register_forward_pre_hook(lambda *_: fill(module, checkpoint, prefix, recurse=False))
    after = module.register_forward_hook(lambda *_: forget(module, recurse=False))

    def end() -> None:
        before.remove()
        after.remove()

    return end


def _batches(prompts: list[Prepared]) -> Iterator[list[Prepared]]:
    """Prompts in order, as many together as `PATCHES` allows, one at least."""
    batch: list[Prepared] = []
    for prompt in prompts:
        if batch and sum(len(one.pixel_values) for one in [*batch, prompt]) > PATCHES:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _encode(tower: Any, prompts: list[Prepared]) -> list[Tensor]:
    sizes = [int(one.image_grid_thw.prod(1).sum()) // tower.spatial_merge_unit for one in prompts]
    if not sum(sizes):
        width = (1 + len(tower.deepstack_visual_indexes)) * tower.config.out_hidden_size
        return [torch.empty(0, width) for _ in prompts]
    pixels = torch.cat([torch.from_numpy(one.pixel_values) for one in prompts])
    grid = torch.cat([torch.from_numpy(one.image_grid_thw) for one in prompts])
    output = tower(pixels, grid_thw=grid)
    return list(torch.split(torch.cat([output.pooler_output, *output.deepstack_features], dim=-1), sizes))


def wide_rows(checkpoint: Checkpoint, prompts: list[Prepared]) -> list[Tensor]:
    """What the decoder gets for each prompt: [S, (1 + D) * H]."""
    facts = checkpoint.facts
    used = sorted({token for prompt in prompts for token in prompt.input_ids[0].tolist()})
    table = {token: checkpoint.read(f"{TEXT}embed_tokens.weight", slice(token, token + 1))[0] for token in used}
    found = []
    for prompt, features in zip(prompts, vision_features(checkpoint, prompts), strict=True):
        ids = prompt.input_ids[0].tolist()
        rows = torch.zeros(len(ids), facts.wide_size)
        rows[:, : facts.hidden_size] = torch.stack([table[token] for token in ids]).to(torch.float32)
        rows[torch.from_numpy(visual_tokens(prompt.input_ids, facts))[0]] = features
        found.append(rows)
    return found
