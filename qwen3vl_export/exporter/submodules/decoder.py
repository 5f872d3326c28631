"""The text decoder to trace: HF layers over wide rows, M-RoPE in the graph, and the cache as inputs and outputs.

Source: transformers `Qwen3VLTextModel.forward`, `Qwen3VLTextRotaryEmbedding`. Differences, each exact: DeepStack maps
arrive on the feature axis and are added to every row (zero on text rows), and each rotary frequency reads its own
position axis instead of interleaving three full tables.

Padding. `GroupQueryAttention` reads each row's number of tokens from the start of the row. The ort graph moves the
tokens of a left-padded prompt there before the first layer, and its result back after the last (`RightPadding`): the
cache then holds no padding, and no mask is added to any score. The portable graph adds a bias and leaves padding where
it is.

Legend: B batch, S new tokens, T all tokens, H hidden size, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...contract import EMBEDDING, NO, RERANKER, TEXT, YES
from .attention import TEXT_ATTENTION, LayerCache
from .half_range import guard_range
from .mrope import MultimodalRotary


class RightPadding:
    """Rotates left-padded rows so that their padding is on the right, and results back. Exact: tokens are only moved.

    Args:
        attention_mask: int64 [B, T]; the first 1 of its last S columns is each row's first new token.
        rows: S.
    """

    def __init__(self, attention_mask: Tensor, rows: int) -> None:
        first = attention_mask[:, attention_mask.shape[1] - rows :].argmax(dim=1, keepdim=True)  # [B, 1]
        base = torch.arange(attention_mask.shape[0])[:, None] * rows
        forward, back = torch.arange(rows)[None] + first, torch.arange(rows)[None] - first
        self.forward = torch.where(forward >= rows, forward - rows, forward) + base  # [B, S], indices into B * S rows
        self.back = torch.where(back < 0, back + rows, back) + base

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """Rotate each sequence so that its first token comes first; `axis` has size B * S."""
        return x.index_select(axis, self.forward.reshape(-1))

    def undo_last(self, x: Tensor, count: Tensor) -> Tensor:
        """Right-padded [B, S, H] -> its `count` last rows in the original order, [B, n, H]; 0 is all.

        Args:
            count: int64 scalar.
        """
        return torch.nn.functional.embedding(last_rows(self.back, count), x.reshape(-1, x.shape[-1]))


def last_rows(x: Tensor, count: Tensor) -> Tensor:
    """[B, S, …] -> its `count` last rows of axis 1; 0 keeps all of them, since a slice from -0 starts at the first.

    Args:
        count: int64 scalar.
    """
    end, axis = torch.tensor([torch.iinfo(torch.int64).max]), torch.tensor([1])
    return torch.onnx.ops.symbolic("Slice", (x, (-count).reshape(1), end, axis), dtype=x.dtype, shape=x.shape)


class Decoder(nn.Module):
    """Wide rows and the past to what the head makes of hidden states, and the longer cache; a subclass has the head.

    Inputs: inputs_embeds [B, S, (1 + D) * H], attention_mask int64 [B, T], position_ids int64 [3, B, S], per layer a
    past key and value [B, K, T - S, E].

    `num_logits_to_keep` int64 scalar: the head of that many last rows, 0 for all.

    Args:
        language_model: `Qwen3VLTextModel`, its weights fake, its attention one of `attention.TEXT_ATTENTION`.
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model: Any = language_model
        self.hidden_size = language_model.config.hidden_size
        self.rotary = MultimodalRotary(language_model.config, language_model.norm.weight.dtype)
        self.causal = language_model.config._attn_implementation == TEXT_ATTENTION["portable"]

    def add_projection(self) -> None:
        """Make the head's own weights, if it has any."""

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [B, n, H] to the output that the contract declares for the head."""
        raise NotImplementedError

    def _bias(self, attention_mask: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        """float [B, 1, S, T], added to scores: half the lowest number at padding and at future tokens, else 0."""
        keys = torch.arange(attention_mask.shape[1])
        queries = torch.arange(rows) + (attention_mask.shape[1] - rows)
        hidden = (attention_mask == 0)[:, None, None, :] | (keys[None, :] > queries[:, None])
        return torch.where(hidden, torch.finfo(dtype).min / 2, 0.0).to(dtype)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
        num_logits_to_keep: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        model = self.language_model
        batch, rows, wide = inputs_embeds.shape
        padding, bias = None, None
        if self.causal:
            bias = self._bias(attention_mask, rows, inputs_embeds.dtype)
        else:
            padding = RightPadding(attention_mask, rows)
            inputs_embeds = padding.apply(inputs_embeds.reshape(batch * rows, wide), 0).reshape(batch, rows, wide)
            position_ids = padding.apply(position_ids.reshape(3, batch * rows), 1).reshape(3, batch, rows)
        hidden, *deepstack = torch.split(inputs_embeds, self.hidden_size, dim=-1)
        cache = LayerCache(past_key_values)
        rotary = self.rotary(position_ids)
        total = torch.tensor(0, dtype=torch.int32) + attention_mask.shape[1]
        seqlens_k = attention_mask.sum(dim=1).to(torch.int32) - 1
        for index, layer in enumerate(model.layers):
            hidden = layer(
                hidden,
                position_embeddings=rotary,
                attention_mask=bias,
                layer_cache=cache,
                seqlens_k=seqlens_k,
                total_sequence_length=total,
            )
            if index < len(deepstack):
                hidden = hidden + deepstack[index]
        if padding is None:
            hidden = last_rows(hidden, num_logits_to_keep)
        else:
            hidden = padding.undo_last(hidden, num_logits_to_keep)
        normed = model.norm(hidden)
        # What is infinite in a token makes every later one of its row NaN; the first tokens of a row may be padding.
        return guard_range(self.head(normed), normed[:, -1]), cache.present


class TextDecoder(Decoder):
    """Returns the logits [B, n, V] of the next token."""

    def add_projection(self) -> None:
        self.lm_head = nn.Linear(self.hidden_size, self.language_model.config.vocab_size, bias=False)

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(hidden)
        return logits


class EmbeddingDecoder(Decoder):
    """Returns the hidden states [B, n, H] themselves."""

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


class RerankerDecoder(Decoder):
    """Returns the logits [B, n, 2] of the tokens `yes` and `no`, float32, and has these two rows of the output head."""

    def add_projection(self) -> None:
        self.score = nn.Linear(self.hidden_size, len((YES, NO)), bias=False, dtype=torch.float32)

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.score(hidden.to(torch.float32))
        return logits


DECODERS: dict[str, type[Decoder]] = {TEXT: TextDecoder, EMBEDDING: EmbeddingDecoder, RERANKER: RerankerDecoder}
