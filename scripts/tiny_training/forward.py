"""The model's own forward pass, arranged so that a CPU can train it.

Uses the modules of the transformers model and computes what they compute; the exam is taken without this file.
Three differences in arrangement, none in mathematics: attention is two batched matrix products, because the backward
pass of CPU SDPA is several times slower at these sizes; pictures of different sizes are padded into one batch;
questions that share a picture are packed behind it.
Shapes: B samples, S tokens, P patches, M visual tokens, D vision width, H text width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from scripts.tiny_training.batches import Batch
from scripts.tiny_training.patches import IGNORE

TEXT_ATTENTION = "tiny_training_text"  # name in transformers' registry of attention functions
BLOCKED = -1e4


@dataclass
class Output:
    logits: Tensor  # (answer tokens, vocabulary)
    targets: Tensor  # (answer tokens,)
    answer: Tensor  # (answer tokens,) index of the answer each token belongs to
    visual: list[Tensor]  # merged and DeepStack features, each (M, H); empty without pictures


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, heads, S, head_dim) in and out; the mask is added to the scores."""
    batch, heads, length, width = query.shape
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.bfloat16() for x in (query, key, value))
    query, key, value = (x.reshape(batch * heads, -1, width) for x in (query * scale, key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).view(batch, heads, length, -1)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = scores.softmax(-1).view(batch * heads, length, -1)
    return torch.bmm(weights, value).view(batch, heads, length, width)


def text_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2), None


def use_text_attention(model: Qwen3VLForConditionalGeneration) -> None:
    ALL_ATTENTION_FUNCTIONS.register(TEXT_ATTENTION, text_attention)
    model.model.language_model.config._attn_implementation = TEXT_ATTENTION


def packed_mask(segments: Tensor) -> Tensor:
    """(B, S) -> (B, 1, S, S): causal, and a question sees only itself and what all share (segment 0)."""
    length = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    seen = (own | (segments[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill_(~seen, BLOCKED)[:, None]


def vision_features(visual: nn.Module, patches: Tensor, grids: Tensor, positions: Tensor) -> list[Tensor]:
    """(P, 1536) -> merged features, then one per DeepStack tap, each (M, H).

    `positions` says for each grid whether its interpolated position table is added.
    """
    merge = visual.spatial_merge_size
    indices, weights = get_vision_interpolation_indices_and_weights(
        grids, visual.num_grid_per_side, visual.interpolation_mode, visual.interpolation_align_corners, merge
    )
    weights = weights * positions.repeat_interleave(grids.prod(1))[:, None]
    weight = visual.patch_embed.proj.weight
    x = F.linear(patches, weight.flatten(1), visual.patch_embed.proj.bias)  # (P, D)
    x = x + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    rotary = visual.rotary_pos_emb(x, get_vision_position_ids(grids, merge))
    layout = Layout.of(grids)
    taps = []
    for index, block in enumerate(visual.blocks):
        x = x + vision_attention(block.attn, block.norm1(x), rotary, layout)
        x = x + block.mlp(block.norm2(x))
        if index in visual.deepstack_visual_indexes:
            taps.append(visual.deepstack_merger_list[len(taps)](x))
    return [visual.merger(x), *taps]


@dataclass
class Layout:
    """How P patches of several pictures and time steps sit in a padded (frames, longest) batch."""

    frames: int
    longest: int
    slots: Tensor | None  # (P,) slot of each patch; None when all frames are equally long
    mask: Tensor | None  # (frames, 1, 1, longest)

    @classmethod
    def of(cls, grids: Tensor) -> "Layout":
        lengths = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
        frames, longest = len(lengths), int(lengths.max())
        valid = torch.arange(longest)[None] < lengths[:, None]
        if bool(valid.all()):
            return cls(frames, longest, None, None)
        mask = torch.zeros(valid.shape).masked_fill_(~valid, BLOCKED)[:, None, None]
        return cls(frames, longest, valid.flatten().nonzero()[:, 0], mask)

    def pad(self, x: Tensor) -> Tensor:
        """(P, heads, head_dim) -> (frames, heads, longest, head_dim)"""
        if self.slots is not None:
            x = x.new_zeros(self.frames * self.longest, *x.shape[1:]).index_copy(0, self.slots, x)
        return x.view(self.frames, self.longest, *x.shape[1:]).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """(frames, heads, longest, head_dim) -> (P, D)"""
        x = x.transpose(1, 2).reshape(self.frames * self.longest, -1)
        return x if self.slots is None else x.index_select(0, self.slots)


def vision_attention(attention: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
    query, key, value = attention.qkv(x).view(len(x), 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    padded = (layout.pad(part.to(x.dtype)) for part in (query, key, value))
    return attention.proj(layout.unpad(attend(*padded, layout.mask, attention.scaling)))


def hidden_states(model: Qwen3VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Last hidden states (B, S, H) after the final norm, and the features of the pictures as in `Output.visual`."""
    input_ids = torch.from_numpy(batch.input_ids)
    embeddings = model.get_input_embeddings()(input_ids)
    pads = (input_ids == model.config.image_token_id) | (input_ids == model.config.video_token_id)
    features: list[Tensor] = []
    if batch.patches is not None:
        patches = torch.from_numpy(batch.patches).float() / 127.5 - 1  # bytes to mean .5, std .5
        grids, positions = torch.from_numpy(batch.grids), torch.from_numpy(batch.positions)
        features = vision_features(model.model.visual, patches, grids, positions)
        embeddings = embeddings.masked_scatter(pads[..., None], features[0].to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        position_ids=torch.from_numpy(batch.position_ids),
        attention_mask=packed_mask(torch.from_numpy(batch.segments)),
        use_cache=False,
        visual_pos_masks=pads if features else None,
        deepstack_visual_embeds=features[1:] or None,
    ).last_hidden_state
    return hidden, features


def forward(model: Qwen3VLForConditionalGeneration, batch: Batch) -> Output:
    """Logits where answers are learnt, and only there."""
    labels = torch.from_numpy(batch.labels)
    hidden, features = hidden_states(model, batch)
    learnt = labels[:, 1:] != IGNORE  # (B, S - 1): positions whose next token is part of an answer
    starts = learnt & ~F.pad(learnt, (1, 0))[:, :-1]
    answer = (starts.flatten().cumsum(0) - 1)[learnt.flatten()]
    return Output(model.lm_head(hidden[:, :-1][learnt]), labels[:, 1:][learnt], answer, features)


def last_states(model: Qwen3VLForConditionalGeneration, batch: Batch) -> Tensor:
    """Last hidden states (B, H) of each row's last token."""
    hidden, _ = hidden_states(model, batch)
    return hidden[torch.arange(len(hidden)), torch.from_numpy(batch.lengths) - 1]


def right_answers(output: Output) -> Tensor:
    """-> (answers,) whether every token is the likeliest: the same as an exact match under greedy decoding."""
    wrong = (output.logits.argmax(-1) != output.targets).float()
    return torch.zeros(int(output.answer[-1]) + 1).index_add(0, output.answer, wrong) == 0
