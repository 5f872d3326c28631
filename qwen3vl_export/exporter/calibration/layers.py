"""transformers' modules with the weights of one layer in memory: modules on the meta device, loaded when they run.

Knows which of a checkpoint's tensors a module takes; nothing about quantization.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.positions import visual_tokens
from ...runtime.prepare import Prepared
from ..checkpoint import Checkpoint
from ..checkpoint.module_weights import set_weight, unload_weights
from ..submodules import MODELS
from .experts import IMPLEMENTATION
from .ranges import Watch, ignore

VISION_PREFIX, TEXT_PREFIX = "model.visual.", "model.language_model."
MAX_PATCHES = 8192  # of the pictures that the tower encodes together: bounds the memory of its activations


def load_weights(
    module: nn.Module, checkpoint: Checkpoint, prefix: str, recurse: bool = True, excluded: Collection[str] = ()
) -> None:
    """Load the checkpoint's values in float32 into a module on the meta device, except stacks of experts
    (`calibration/experts.py`).

    Args:
        prefix: what the checkpoint's names have before the module's.
        recurse: also load its submodules.
        excluded: the checkpoint's names of tensors that are not loaded either.
    """
    for name, _ in list(module.named_parameters(recurse=recurse)):
        if ".experts." in name or prefix + name in excluded:
            continue
        set_weight(module, name, checkpoint.read(prefix + name).to(torch.float32).contiguous())


@contextmanager
def loaded_weights(
    module: nn.Module, checkpoint: Checkpoint, prefix: str, excluded: Collection[str] = ()
) -> Iterator[None]:
    """Keep a module's weights loaded inside the context; the arguments are those of `load_weights`."""
    load_weights(module, checkpoint, prefix, excluded=excluded)
    try:
        yield
    finally:
        unload_weights(module)


def build_text_model(checkpoint: Checkpoint) -> Any:
    """transformers' language model without weights."""
    config = copy.deepcopy(checkpoint.config.text_config)
    config._attn_implementation = "sdpa"
    config._experts_implementation = IMPLEMENTATION
    with torch.device("meta"):
        model = MODELS[checkpoint.facts.model_type][1](config).eval()
    model.rotary_emb = type(model.rotary_emb)(config)  # its frequencies are computed, not loaded
    return model


def encode_pictures(checkpoint: Checkpoint, prompts: list[Prepared], watch: Watch) -> list[Tensor]:
    """Wide features, float32 [N, (1 + D) * H], of each prompt's pictures; one module's weights in memory at a time."""
    config = copy.deepcopy(checkpoint.config.vision_config)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        tower = MODELS[checkpoint.facts.model_type][0](config).eval()
    tower.rotary_pos_emb = type(tower.rotary_pos_emb)(config)
    features: list[Tensor] = []
    with ExitStack() as stack:
        for name, module in tower.named_modules():
            if list(module.parameters(recurse=False)):
                stack.callback(_load_on_call(module, checkpoint, f"{VISION_PREFIX}{name}."))
        stack.enter_context(watch(tower, VISION_PREFIX))
        for batch in _split_batches(prompts):
            features += _encode_batch(tower, batch)
    return features


def _load_on_call(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> Callable[[], None]:
    """Load a module's weights whenever it is called and unload them afterwards; returns what removes these hooks."""
    before = module.register_forward_pre_hook(lambda *_: load_weights(module, checkpoint, prefix, recurse=False))
    after = module.register_forward_hook(lambda *_: unload_weights(module, recurse=False))

    def remove_hooks() -> None:
        before.remove()
        after.remove()

    return remove_hooks


def _split_batches(prompts: list[Prepared]) -> Iterator[list[Prepared]]:
    """Prompts in order, as many together as `MAX_PATCHES` allows, but at least one."""
    batch: list[Prepared] = []
    for prompt in prompts:
        if batch and sum(len(p.pixel_values) for p in [*batch, prompt]) > MAX_PATCHES:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _encode_batch(tower: Any, prompts: list[Prepared]) -> list[Tensor]:
    sizes = [int(prompt.image_grid_thw.prod(1).sum()) // tower.spatial_merge_unit for prompt in prompts]
    if not sum(sizes):
        width = (1 + len(tower.deepstack_visual_indexes)) * tower.config.out_hidden_size
        return [torch.empty(0, width) for _ in prompts]
    pixels = torch.cat([torch.from_numpy(prompt.pixel_values) for prompt in prompts])
    grid = torch.cat([torch.from_numpy(prompt.image_grid_thw) for prompt in prompts])
    output = tower(pixels, grid_thw=grid)
    return list(torch.split(torch.cat([output.pooler_output, *output.deepstack_features], dim=-1), sizes))


def embed_prompts(checkpoint: Checkpoint, prompts: list[Prepared], watch: Watch = ignore) -> list[Tensor]:
    """The decoder's input for each prompt, float32 [S, (1 + D) * H]: embeddings, and the D maps of DeepStack.

    Args:
        watch: opens a context in which the tower runs; takes the tower and what its layers' names begin with.
    """
    facts = checkpoint.facts
    tokens = sorted({token for prompt in prompts for token in prompt.input_ids[0].tolist()})
    weight = f"{TEXT_PREFIX}embed_tokens.weight"
    table = {token: checkpoint.read(weight, slice(token, token + 1))[0] for token in tokens}
    embedded = []
    for prompt, features in zip(prompts, encode_pictures(checkpoint, prompts, watch), strict=True):
        ids = prompt.input_ids[0].tolist()
        rows = torch.zeros(len(ids), facts.wide_size)
        rows[:, : facts.hidden_size] = torch.stack([table[token] for token in ids]).to(torch.float32)
        rows[torch.from_numpy(visual_tokens(prompt.input_ids, facts))[0]] = features
        embedded.append(rows)
    return embedded
