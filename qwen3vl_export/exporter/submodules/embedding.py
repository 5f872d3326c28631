"""The two embedding graphs to trace; both read the same token table.

A wide row is `[embedding, 0, …, 0]` for a text token and the image feature (merged embedding, then the DeepStack maps)
for a visual one. Source: transformers `Qwen3VLModel.forward` (`masked_scatter` of image and video features).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .geometry import guard_rows


class EmbedTokens(nn.Module):
    """input_ids int64 [B, S] -> inputs_embeds [B, S, (1 + D) * H]."""

    def __init__(self, table: nn.Embedding, num_deepstack: int) -> None:
        super().__init__()
        self.embed_tokens = table
        self.padding = num_deepstack * table.weight.shape[1]

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.pad(self.embed_tokens(input_ids), (0, self.padding))


class Embeddings(nn.Module):
    """input_ids int64 [B, S], image_features [V, W] -> inputs_embeds [B, S, W]; the k-th pad token gets row k.

    Pad tokens of images and videos are counted together over the flattened batch. Their number must be V, or the graph
    fails.
    """

    def __init__(self, table: nn.Embedding, num_deepstack: int, image_token_id: int, video_token_id: int) -> None:
        super().__init__()
        self.embed_tokens = table
        self.padding = num_deepstack * table.weight.shape[1]
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        wide = F.pad(self.embed_tokens(input_ids), (0, self.padding))
        visual = ((input_ids == self.image_token_id) | (input_ids == self.video_token_id)).reshape(-1).to(torch.int64)
        image_features = guard_rows(
            image_features,
            visual.sum(),
            "the number of image and video pad tokens differs from the rows of image_features",
        )
        rows = torch.cat([image_features.new_zeros(1, image_features.shape[1]), image_features])
        picked = rows.index_select(0, visual.cumsum(0) * visual)  # text tokens pick the zero row
        return torch.where(visual.reshape(input_ids.shape)[:, :, None] == 1, picked.reshape(wide.shape), wide)
