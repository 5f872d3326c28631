"""The vision encoder to trace: HF weights and norms, this package's geometry and attention, wide output.

Source: transformers `Qwen3VLVisionModel.forward`, `Qwen3VLVisionAttention.forward`. Differences, each exact: the patch
embedding Conv3d (kernel = stride) is one matrix product, geometry is vectorised, queries, keys and values stay
[patches, width] from projection to attention, and merged features and DeepStack maps share one feature axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.rotary import vision_rotary
from . import geometry
from .attention import grid_attention, rotate, rotate_by_table
from .half_range import guard_range

SEGMENTS = {"ort": geometry.image_segments, "portable": geometry.chunk_segments}
ROTATIONS = {"ort": rotate_by_table, "portable": rotate}


class VisionEncoder(nn.Module):
    """pixel_values float32 [P, patch_dim], image_grid_thw int64 [I, 3] -> image_features [P / 4, (1 + D) * H].

    Args:
        visual: `Qwen3VLVisionModel`, its weights fake.
        target: key of `SEGMENTS`.
        grid: the only (h, w) in patches this encoder takes, or None for any number of images of any grid.
    """

    inv_freq: Tensor

    def __init__(self, visual: Any, target: str, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        config = visual.config
        self.visual: Any = visual
        self.segments, self.rotate = SEGMENTS[target], ROTATIONS[target]
        self.grid = grid
        self.merge = config.spatial_merge_size
        self.side = int(config.num_position_embeddings**0.5)  # rows that do not fill a square are never read
        self.taps = list(config.deepstack_visual_indexes)
        self.register_buffer("inv_freq", vision_rotary(config).inv_freq, persistent=False)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        visual = self.visual
        pixel_values, image_grid_thw = geometry.guard_patches(pixel_values, image_grid_thw, self.merge, self.grid)
        if self.grid is not None:
            image_grid_thw = torch.tensor([[1, *self.grid]], dtype=torch.int64)
        patches = geometry.locate_patches(image_grid_thw, pixel_values.shape[0], self.merge)
        taps, weights = geometry.interpolation_taps(patches, self.side)
        rotary = geometry.rotary_tables(patches, self.inv_freq)
        segments = self.segments(image_grid_thw)

        projection = visual.patch_embed.proj
        kernel = projection.weight.reshape(projection.out_channels, -1)  # [width, patch_dim]
        hidden = F.linear(pixel_values.to(kernel.dtype), kernel, projection.bias)
        positions = (visual.pos_embed(taps) * weights[:, :, None]).sum(1)
        hidden = hidden + positions.to(hidden.dtype)

        maps = []
        for index, block in enumerate(visual.blocks):
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), rotary, segments)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in self.taps:
                maps.append(visual.deepstack_merger_list[self.taps.index(index)](hidden))
        features = torch.cat([visual.merger(hidden), *maps], dim=-1)
        return guard_range(features, features)

    def _attend(self, attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], segments: Tensor) -> Tensor:
        """[P, width] -> [P, width]: the HF module's projections around rotation and block attention."""
        query, key, value = torch.split(attention.qkv(hidden), attention.dim, dim=-1)
        heads = attention.num_heads
        query, key = self.rotate(query, rotary, heads), self.rotate(key, rotary, heads)
        return attention.proj(grid_attention(query, key, value, segments, heads, attention.scaling))  # type: ignore[no-any-return]
