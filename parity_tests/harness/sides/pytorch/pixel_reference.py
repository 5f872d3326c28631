"""What transformers makes of a prompt's pictures: patch grids and pixel values.

Images go through `Qwen2VLImageProcessorPil`, files through `image_utils.load_image` before it; of 16-bit gray, which
`load_image` makes white, the upper 8 bits are used. Frames follow the size rule and the patch order of
`Qwen3VLVideoProcessor`; that class resizes with torchvision, which is replaced by Pillow's filter, as for images.
For an artifact bound to fixed grids, transformers has no rule to choose a size by: the pictures are first resized to
the grid under test, and everything after the resize is transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict, load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize
from transformers.video_utils import VideoMetadata

from qwen3vl_export.runtime.arrays import Bytes, Float32, Ints
from qwen3vl_export.runtime.pictures.images import open_encoded

from ...cases.matrix import Prompt
from ...cases.picture_kinds import PictureSource

Grid = tuple[int, int]


def pixel_budget(checkpoint: Path) -> tuple[int, int]:
    """The fewest and the most pixels that transformers' processor makes of a picture."""
    size = Qwen2VLImageProcessorPil.from_pretrained(checkpoint).size
    return size.shortest_edge, size.longest_edge


class PixelReference:
    """The processors of one checkpoint directory.

    Args:
        fps: frames per second of every video.
    """

    def __init__(self, checkpoint: Path, fps: float) -> None:
        self.fps = fps
        self.images = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.videos = Qwen3VLVideoProcessor.from_pretrained(checkpoint)

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
        videos = self.videos
        frames = [frames[index] for index in sampled_frames(videos, len(frames), self.fps)]
        patch, merge, time = videos.patch_size, videos.merge_size, videos.temporal_patch_size
        if bound is None:
            height, width = smart_resize(
                len(frames),
                frames[0].height,
                frames[0].width,
                temporal_factor=time,
                factor=patch * merge,
                min_pixels=videos.size["shortest_edge"],
                max_pixels=frame_budget(videos, len(frames)),
            )
        else:
            height, width = bound[0] * patch, bound[1] * patch
        values = []
        for frame in frames:
            pixels = self._resize(frame, height, width)
            if videos.do_rescale:
                pixels = self.images.rescale(pixels, videos.rescale_factor)
            if videos.do_normalize:
                pixels = self.images.normalize(pixels, videos.image_mean, videos.image_std)
            values.append(pixels)
        stack = torch.from_numpy(np.stack(values)[None].astype(np.float32))
        patches, *grid = Qwen3VLVideoProcessor.patchify(None, stack, patch, merge, time)
        return np.array([grid]), patches[0].numpy()

    def _resize(self, image: Image.Image, height: int, width: int) -> Bytes:
        """Pixels [3, height, width]."""
        pixels = self.images.process_image(image, do_convert_rgb=True)
        size = SizeDict(height=height, width=width)
        resized: Bytes = PilBackend.resize(self.images, pixels, size, self.images.resample)
        return resized


def sampled_frames(videos: Qwen3VLVideoProcessor, count: int, fps: float) -> list[int]:
    """Which of `count` frames a video processor samples."""
    if not videos.do_sample_frames:
        return list(range(count))
    metadata = VideoMetadata(total_num_frames=count, fps=fps)
    indices: list[int] = videos.sample_frames(metadata, num_frames=videos.num_frames, fps=videos.fps).tolist()
    return indices


def frame_budget(videos: Qwen3VLVideoProcessor, count: int) -> int:
    """Pixels that `count` frames may have together, as in `Qwen3VLVideoProcessor.resize`."""
    budget: int = videos.size["longest_edge"]
    if not videos.cap_pixels_per_frame:
        return budget
    tokens = videos.max_video_tokens * (videos.patch_size * videos.merge_size) ** 2
    per_frame: int = max(min(tokens, budget // count), int(videos.size["shortest_edge"] * 1.05))
    return per_frame * count


def load_file(data: bytes) -> Image.Image:
    """A file's picture as transformers decodes it."""
    image = open_encoded(BytesIO(data))
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    loaded: Image.Image = load_image(image)
    return loaded
