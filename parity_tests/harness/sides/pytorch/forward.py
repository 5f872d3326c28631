"""transformers' forward passes: the tower over pictures, and the rest of the model over a prompt and what follows it.

Nothing of the model is reimplemented. Positions and masks are its own; the tower's features enter by the argument it
has for them; rows and DeepStack maps are recorded where it passes them to its language model.

Texts that follow the same prompt are read in one call, one after another: each has the positions it has right after the
prompt, and the mask hides the other texts from it, so that each is computed as if it were alone.

Legend: B batch, S tokens of the prompt, T of a text, V vocabulary; N image tokens; H hidden size, D DeepStack maps,
W = (1 + D) * H.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from qwen3vl_export.runtime.arrays import Float32, Ints

from .inputs import Inputs, model_arguments
from .products import LargeProducts


@dataclass(frozen=True)
class Prefill:
    """One forward pass over the prompt."""

    position_ids: Ints  # [3, B, S]
    rope_deltas: Ints  # [B, 1]
    inputs_embeds: Float32  # [B, S, W]
    image_features: Float32  # [N, W]
    logits: Float32  # [B, N, V] of the last N tokens, see `tokens_compared`: all of them, unless the prompt is long

    def followed_by(self, text: Continuation) -> Prefill:
        """Prompt and text as one prompt, with the logits [B, T, V] of the text alone."""
        return Prefill(
            np.concatenate([self.position_ids, text.position_ids], axis=-1),
            self.rope_deltas,
            np.concatenate([self.inputs_embeds, text.inputs_embeds], axis=1),
            self.image_features,
            text.logits[:, 1:],
        )


@dataclass(frozen=True)
class Continuation:
    """Text that was read after a prompt."""

    position_ids: Ints  # [3, B, T]
    inputs_embeds: Float32  # [B, T, W]
    logits: Float32  # [B, 1 + T, V], of the prompt's last token and of the text


def encode(model: Any, inputs: Inputs, device: torch.device) -> Float32:
    """Wide features [N, W] of the vision tower alone, every picture and frame in the order of the grid.

    Its products stay PyTorch's own, which are rounded less than `LargeProducts`: features have the tightest limits.
    """
    pixels, grid = (torch.from_numpy(array).to(device) for array in (inputs.pixel_values, inputs.image_grid_thw))
    output = model.model.visual(pixels, grid_thw=grid)
    features: Float32 = to_numpy(torch.cat([output.pooler_output, *output.deepstack_features], dim=-1))
    return features


def read(
    model: Any,
    inputs: Inputs,
    features: Float32 | None,
    device: torch.device,
    texts: Sequence[Ints] = (),
    count: int = 1,
) -> tuple[Prefill, list[Continuation]]:
    """The model over a prompt and the texts [B, T] that may follow it, in one call.

    Args:
        features: of the prompt's pictures, as `encode` gives them; None without pictures.
        count: of how many of the prompt's last tokens `Prefill.logits` has the logits.
    """
    config = model.config
    prompt = inputs.input_ids.shape[1]
    whole = inputs.followed_by(*texts)
    positions, deltas = rope_index(model, inputs, device, features)
    continued = [rope_index(model, inputs.followed_by(text), device, features)[0][..., prompt:] for text in texts]
    position_ids = torch.cat([positions, *continued], dim=-1)
    kwargs = model_arguments(whole, config, device, features)
    if len(texts) > 1:
        parts = torch.tensor([0] * prompt + [n for n, text in enumerate(texts, 1) for _ in range(text.shape[1])])
        kwargs["attention_mask"] = hide_other_parts(config.text_config, kwargs["attention_mask"], parts.to(device))
    kept = count + whole.input_ids.shape[1] - prompt
    recorded: dict[str, Any] = {}
    record = pre_forward_hook(model.model.language_model, lambda module, args, kwargs: recorded.update(kwargs))
    with record, LargeProducts():
        output = model(**kwargs, position_ids=position_ids, logits_to_keep=kept, use_cache=False)
    logits, rows = to_numpy(output.logits), wide_rows(recorded, len(config.vision_config.deepstack_visual_indexes))
    visual = recorded["visual_pos_masks"]
    seen = rows[to_numpy(visual)] if visual is not None else np.empty((0, rows.shape[-1]), np.float32)
    left_out = whole.input_ids.shape[1] - logits.shape[1]  # tokens without logits
    axes = to_numpy(position_ids)
    ends = accumulate((text.shape[1] for text in texts), initial=prompt)
    return (
        Prefill(axes[..., :prompt], to_numpy(deltas), rows[:, :prompt], seen, logits[:, : prompt - left_out]),
        [
            Continuation(
                axes[..., start:end],
                rows[:, start:end],
                np.concatenate(
                    [
                        logits[:, prompt - left_out - 1 : prompt - left_out],
                        logits[:, start - left_out : end - left_out],
                    ],
                    axis=1,
                ),
            )
            for start, end in pairwise(ends)
        ],
    )


def rope_index(
    model: Any, inputs: Inputs, device: torch.device, features: Float32 | None = None
) -> tuple[Tensor, Tensor]:
    """transformers' position ids [3, B, S] and rope deltas [B, 1]; with features, no pixels are copied."""
    kwargs = model_arguments(inputs, model.config, device, features)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    positions: tuple[Tensor, Tensor] = model.model.get_rope_index(**{name: kwargs.get(name) for name in names})
    return positions


def hide_other_parts(config: Any, attention_mask: Tensor, parts: Tensor) -> Tensor:
    """transformers' causal mask [B, 1, L, L], in which a token sees part 0 and its own part alone.

    Args:
        attention_mask: [B, L].
        parts: [L], the part that each token belongs to.
    """

    def is_visible(batch: Any, head: Any, query: Any, key: Any) -> Tensor:
        return (parts[key] == 0) | (parts[key] == parts[query])

    sizes = torch.empty(*attention_mask.shape, 1, device=attention_mask.device)  # float32, read for its shape
    mask: Tensor = create_causal_mask(config, sizes, attention_mask, None, and_mask_function=is_visible)
    return mask


def wide_rows(recorded: dict[str, Any], num_maps: int) -> Float32:
    """Rows [B, L, W] of what transformers passes to its language model: embeddings, DeepStack maps beside them."""
    hidden, visual = recorded["inputs_embeds"], recorded["visual_pos_masks"]
    wide = hidden.new_zeros(*hidden.shape[:2], (1 + num_maps) * hidden.shape[-1])
    wide[..., : hidden.shape[-1]] = hidden
    if visual is not None:
        wide[visual] = torch.cat([hidden[visual], *recorded["deepstack_visual_embeds"]], dim=-1)
    rows: Float32 = to_numpy(wide)
    return rows


def to_numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


@contextmanager
def pre_forward_hook(module: torch.nn.Module, function: Callable[..., None]) -> Iterator[None]:
    """Inside, `function` is called before the module runs in this thread."""
    thread = threading.get_ident()

    def hook(*args: Any) -> None:
        if threading.get_ident() == thread:
            function(*args)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
