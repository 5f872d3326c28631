"""What transformers makes of a prompt's pictures: patch grids and pixel values.

Images go through `Qwen2VLImageProcessorPil`, files through `image_utils.load_image` before it; of 16-bit gray, which
`load_image` makes white, the upper 8 bits are used. Frames follow the size rule and the patch order of
`Qwen3VLVideoProcessor`; that class resizes with torchvision, which is replaced by Pillow's filter, as for images.
For an artifact bound to fixed grids, transformers has no rule to choose a size by: the pictures are first resized to
the grid under test, and everything after the resize is transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict, load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize

from qwen3vl_export.runtime.arrays import Bytes, Float32, Ints
from qwen3vl_export.runtime.images import open_encoded

from ..cases.matrix import Prompt
from ..cases.picture_kinds import PictureSource

Grid = tuple[int, int]


class PixelReference:
    """The processors of one checkpoint directory."""

    def __init__(self, checkpoint: Path) -> None:
        self.images = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.frames = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)  # for its per-frame functions
        self.video_config: dict[str, Any] = json.loads(
            (checkpoint / "video_preprocessor_config.json").read_text("utf-8")
        )

    def __call__(self, prompts: Sequence[Prompt], bound: Sequence[Grid] | None = None) -> tuple[Ints, Float32]:
        """Grids [I, 3] and patches [P, patch_dim] of all pictures in the order of the prompts.

        Args:
            bound: (h, w) in patches for each picture; None leaves the choice to transformers.
        """
        grids, patches, index = [], [], 0
        for prompt in prompts:
            for image in prompt.images:
                grid, values = self.process_image(image, bound[index] if bound else None)
                grids.append(grid)
                patches.append(values)
                index += 1
            if prompt.frames:
                grid, values = self.process_frames(prompt.frames, bound[index] if bound else None)
                grids.append(grid)
                patches.append(values)
                index += 1
        return np.concatenate(grids).astype(np.int64), np.concatenate(patches)

    def process_image(self, picture: PictureSource, bound: Grid | None) -> tuple[Ints, Float32]:
        image = load_file(picture) if isinstance(picture, bytes) else picture
        if bound is None:
            features = self.images([image], return_tensors="np")
        else:
            pixels = self._resize(image, bound[0] * self.images.patch_size, bound[1] * self.images.patch_size)
            features = self.images([pixels], do_resize=False, input_data_format="channels_first", return_tensors="np")
        return features["image_grid_thw"], features["pixel_values"]

    def process_frames(self, frames: Sequence[Image.Image], bound: Grid | None) -> tuple[Ints, Float32]:
        config = self.video_config
        patch, merge, time = (config[name] for name in ("patch_size", "merge_size", "temporal_patch_size"))
        if bound is None:
            height, width = smart_resize(
                len(frames),
                frames[0].height,
                frames[0].width,
                temporal_factor=time,
                factor=patch * merge,
                min_pixels=config["size"]["shortest_edge"],
                max_pixels=config["size"]["longest_edge"],
            )
        else:
            height, width = bound[0] * patch, bound[1] * patch
        values = []
        for frame in frames:
            pixels = self.frames.rescale(self._resize(frame, height, width), 1 / 255)
            values.append(self.frames.normalize(pixels, config["image_mean"], config["image_std"]))
        stack = torch.from_numpy(np.stack(values)[None].astype(np.float32))
        patches, *grid = Qwen3VLVideoProcessor.patchify(None, stack, patch, merge, time)
        return np.array([grid]), patches[0].numpy()

    def _resize(self, image: Image.Image, height: int, width: int) -> Bytes:
        """Pixels [3, height, width]."""
        pixels = self.frames.process_image(image, do_convert_rgb=True)
        size = SizeDict(height=height, width=width)
        resized: Bytes = PilBackend.resize(self.frames, pixels, size, self.frames.resample)
        return resized


def load_file(data: bytes) -> Image.Image:
    """A file's picture as transformers decodes it."""
    image = open_encoded(data)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    loaded: Image.Image = load_image(image)
    return loaded
