"""transformers' own `Qwen3VLProcessor` for videos, where torchvision is not installed.

Its video processor takes four functions from torchvision. They are set in place here: resizing is the PyTorch kernel
that torchvision calls for 8-bit bicubic tensors (`torch.nn.functional.interpolate`), the others are arithmetic.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, image_processing_backends, video_processing_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from .standin import TINY

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


def resize(frames: torch.Tensor, size: tuple[int, int], interpolation: str, antialias: bool) -> torch.Tensor:
    assert frames.dtype == torch.uint8 and interpolation == "bicubic" and antialias
    flat = frames.reshape(-1, *frames.shape[-3:])
    resized = torch.nn.functional.interpolate(flat, list(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*frames.shape[:-2], *size)


def normalize(frames: torch.Tensor, mean: Any, std: Any, inplace: bool) -> torch.Tensor:
    channels = [torch.as_tensor(values).view(-1, 1, 1) for values in (mean, std)]
    return (frames - channels[0]) / channels[1]


def video_processor(monkeypatch: pytest.MonkeyPatch) -> Qwen3VLVideoProcessor:
    """The tiny checkpoint's, able to run."""
    modes = SimpleNamespace(LANCZOS="lanczos", BICUBIC="bicubic", BILINEAR="bilinear")
    functions = SimpleNamespace(
        InterpolationMode=modes, resize=resize, normalize=normalize, grayscale_to_rgb=lambda frames: frames
    )
    for module in (image_processing_backends, video_processing_utils):
        monkeypatch.setattr(module, "tvF", functions, raising=False)
    modes_of_pil = {BICUBIC: modes.BICUBIC}
    monkeypatch.setattr(image_processing_backends, "pil_torch_interpolation_mapping", modes_of_pil, raising=False)
    return Qwen3VLVideoProcessor.from_pretrained(TINY, cap_pixels_per_frame=False)


def whole_processor(monkeypatch: pytest.MonkeyPatch) -> Qwen3VLProcessor:
    """Tokenizer, template, image and video processor of the tiny checkpoint together."""
    monkeypatch.setattr(Qwen3VLProcessor, "check_argument_for_proper_class", lambda *_: None)  # looks for torchvision
    images, tokenizer = Qwen2VLImageProcessorPil.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    return Qwen3VLProcessor(images, tokenizer, video_processor(monkeypatch), chat_template=tokenizer.chat_template)
