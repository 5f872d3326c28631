"""PyTorch with a known mistake in it: one function for each way to get Qwen3-VL wrong that can be located.

Vision suspects take (reference, pixels [P, patch_dim], grids [I, 3]) and give features [N, W]; decoder suspects take
(reference, the prompt's prefill, mask [B, S]) and give logits [B, S, V]. Knows mistakes; not which artifact made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl as modeling

from qwen3vl_export.runtime.arrays import Floats, Ints

from ..sides.lockstep import while_running
from ..sides.pytorch.forward import Prefill
from ..sides.pytorch.reference import Reference

VisionSuspect = Callable[[Reference, Floats, Ints], Floats]
DecoderSuspect = Callable[[Reference, Prefill, Ints], Floats]


@contextmanager
def attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Inside, `owner.name` is `value`, for this suspect alone if others are computed in step with it."""

    def apply() -> Callable[[], None]:
        before = getattr(owner, name)
        setattr(owner, name, value)
        return lambda: setattr(owner, name, before)

    with while_running(apply):
        yield


@contextmanager
def attributes(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """`attribute` for every (owner, name, value)."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(attribute(*change))
        yield


def raster_order(image_grid_thw: Ints, merge: int) -> Ints:
    """Indices [P] that list patches of 2x2 blocks row by row."""
    indices, start = [], 0
    for t, h, w in image_grid_thw.tolist():
        blocks = np.arange(start, start + t * h * w).reshape(t, h // merge, w // merge, merge, merge)
        indices.append(blocks.transpose(0, 1, 3, 2, 4).reshape(-1))
        start += t * h * w
    return np.concatenate(indices) if indices else np.empty(0, np.int64)


# The vision encoder.


def half_pixel_grid(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    with attribute(reference.model.model.visual, "interpolation_align_corners", False):
        return reference.vision(pixels, grid, remember=False)


def swapped_grid(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    return reference.vision(pixels, np.ascontiguousarray(grid[:, [0, 2, 1]]), remember=False)


def without_maps(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    features = reference.vision(pixels, grid).copy()
    features[:, reference.hidden_size :] = 0
    return features


def exchanged_maps(first: int, second: int, reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    features = reference.vision(pixels, grid)
    parts = np.split(features, features.shape[1] // reference.hidden_size, axis=1)
    if max(first, second) >= len(parts):
        return features
    parts[first], parts[second] = parts[second], parts[first]
    return np.concatenate(parts, axis=1)


def raster_patches(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    order = raster_order(grid, reference.model.config.vision_config.spatial_merge_size)
    return reference.vision(pixels[order], grid, remember=False)


def first_frame_only(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    vision = reference.model.config.vision_config
    frames = pixels.copy().reshape(len(pixels), vision.in_channels, vision.temporal_patch_size, -1)
    frames[:, :, 1:] = 0
    return reference.vision(frames.reshape(pixels.shape), grid, remember=False)


def no_patch_bias(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    with attribute(reference.model.model.visual.patch_embed.proj, "bias", None):
        return reference.vision(pixels, grid, remember=False)


def no_rotary(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    def unrotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return query, key

    with attribute(modeling, "apply_rotary_pos_emb_vision", unrotated):
        return reference.vision(pixels, grid, remember=False)


def exact_gelu(reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    with attributes((block.mlp, "act_fn", nn.GELU()) for block in reference.model.model.visual.blocks):
        return reference.vision(pixels, grid, remember=False)


def joined_attention(across_images: bool, reference: Reference, pixels: Floats, grid: Ints) -> Floats:
    """Segments of whole images instead of frames, or one segment of everything."""

    def segments(grid_thw: Tensor, config: Any, kwargs: Any = None) -> tuple[Tensor, int]:
        counts = grid_thw.prod(1)
        ends = counts.sum()[None] if across_images else counts.cumsum(0)
        starts = torch.zeros(1, dtype=torch.int32, device=ends.device)
        return torch.cat([starts, ends.to(torch.int32)]), int(counts.max())

    with attribute(modeling, "get_vision_attention_seqlens", segments):
        return reference.vision(pixels, grid, remember=False)


# The decoder.


def decoder_without_maps(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    rows = start.inputs_embeds.copy()
    rows[..., reference.hidden_size :] = 0
    return reference.decoder(rows, mask, start.position_ids)


def maps_one_layer_late(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    plain, maps = np.split(start.inputs_embeds, [reference.hidden_size], axis=-1)
    return reference.decoder(np.concatenate([plain, plain * 0, maps], axis=-1), mask, start.position_ids)


def blocked_sections(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    """All frequencies of time, then all of rows, then all of columns, as in Qwen2-VL."""
    rotary = reference.model.model.language_model.rotary_emb
    sections = rotary.mrope_section

    def blocked(frequencies: Tensor) -> Tensor:
        blocks = torch.split(frequencies, sections, dim=-1)
        half = torch.cat([block[axis] for axis, block in enumerate(blocks)], dim=-1)
        return torch.cat([half, half], dim=-1)

    with attribute(rotary, "recomposition_frequencies", blocked):
        return reference.decoder(start.inputs_embeds, mask, start.position_ids)


def reordered_axes(order: list[int], reference: Reference, start: Prefill, mask: Ints) -> Floats:
    return reference.decoder(start.inputs_embeds, mask, np.ascontiguousarray(start.position_ids[order]))


def padding_seen(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    return reference.decoder(start.inputs_embeds, np.ones_like(mask), start.position_ids)


def larger_epsilon(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    modules = reference.model.model.language_model.modules()
    norms = [module for module in modules if hasattr(module, "variance_epsilon")]
    with attributes((norm, "variance_epsilon", 1e-5) for norm in norms):
        return reference.decoder(start.inputs_embeds, mask, start.position_ids)


def no_qk_norm(reference: Reference, start: Prefill, mask: Ints) -> Floats:
    layers = reference.model.model.language_model.layers
    with attributes((layer.self_attn, name, nn.Identity()) for layer in layers for name in ("q_norm", "k_norm")):
        return reference.decoder(start.inputs_embeds, mask, start.position_ids)


VISION_SUSPECTS: dict[str, VisionSuspect] = {
    "position table interpolated with align_corners=False (vision encoder, position interpolation)": half_pixel_grid,
    "height and width of the grid swapped (vision encoder, geometry)": swapped_grid,
    "merge-block order of the patches ignored (vision encoder, geometry)": raster_patches,
    "DeepStack maps missing from the features (vision encoder, DeepStack)": without_maps,
    "DeepStack maps 0 and 1 exchanged (vision encoder, DeepStack)": partial(exchanged_maps, 1, 2),
    "DeepStack maps 1 and 2 exchanged (vision encoder, DeepStack)": partial(exchanged_maps, 2, 3),
    "DeepStack maps 0 and 2 exchanged (vision encoder, DeepStack)": partial(exchanged_maps, 1, 3),
    "second frame of every patch dropped (vision encoder, patch embedding)": first_frame_only,
    "bias of the patch embedding lost (vision encoder, patch embedding)": no_patch_bias,
    "rotary embedding left out (vision encoder, attention)": no_rotary,
    "attention across the frames of a video (vision encoder, attention)": partial(joined_attention, False),
    "attention across images (vision encoder, attention)": partial(joined_attention, True),
    "exact GELU in place of its tanh approximation (vision encoder, MLP)": exact_gelu,
}
DECODER_SUSPECTS: dict[str, DecoderSuspect] = {
    "DeepStack maps dropped (decoder, DeepStack)": decoder_without_maps,
    "DeepStack maps added after the wrong layers (decoder, DeepStack)": maps_one_layer_late,
    "M-RoPE sections blocked instead of interleaved (decoder, M-RoPE)": blocked_sections,
    "rows and columns swapped in the positions (decoder, M-RoPE)": partial(reordered_axes, [0, 2, 1]),
    "one position axis used for all three (decoder, M-RoPE)": partial(reordered_axes, [0, 0, 0]),
    "attention mask ignored, padding is seen (decoder, attention)": padding_seen,
    "RMSNorm with epsilon 1e-5 (decoder, normalization)": larger_epsilon,
    "q and k norms left out (decoder, attention)": no_qk_norm,
}
