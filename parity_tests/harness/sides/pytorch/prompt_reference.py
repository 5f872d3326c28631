"""What transformers makes of a prompt's text: chat template, placeholder expansion, tokens.

Template and expansion are `Qwen3VLProcessor`'s. The class cannot be instantiated without torchvision, so its methods
run on a stand-in with the attributes they read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from ...cases.matrix import Prompt
from .pixel_reference import sampled_frames


class PromptReference:
    """Tokenizer and chat template of one checkpoint directory.

    Args:
        fps: frames per second of every video.
    """

    def __init__(self, checkpoint: Path, fps: float) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.template = processor_template(checkpoint, self.tokenizer)
        self.videos = Qwen3VLVideoProcessor.from_pretrained(checkpoint)
        self.fps = fps
        config = json.loads((checkpoint / "config.json").read_text("utf-8"))
        vision = config["vision_config"]
        sizes = SimpleNamespace(
            merge_size=vision["spatial_merge_size"], temporal_patch_size=vision["temporal_patch_size"]
        )
        token = self.tokenizer.convert_ids_to_tokens
        self.processor = SimpleNamespace(
            image_token=token(config["image_token_id"]),
            video_token=token(config["video_token_id"]),
            vision_start_token=token(config["vision_start_token_id"]),
            vision_end_token=token(config["vision_end_token_id"]),
            image_processor=sizes,
            video_processor=sizes,
            _calculate_timestamps=lambda *args: Qwen3VLProcessor._calculate_timestamps(None, *args),
        )

    def __call__(self, prompts: Sequence[Prompt], image_grid_thw: NDArray[np.int64]) -> list[list[int]]:
        """Token ids of each prompt; `image_grid_thw` [I, 3] lists the pictures of all prompts in order."""
        grids = list(image_grid_thw)
        return [self.tokenizer(self.text(prompt, grids))["input_ids"] for prompt in prompts]

    def text(self, prompt: Prompt, grids: list[NDArray[np.int64]]) -> str:
        """The rendered prompt, placeholders expanded; removes its pictures' grids from the front of `grids`."""
        text: str = self.tokenizer.apply_chat_template(
            self.messages(prompt), chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        for _ in prompt.images:
            images = {"image_grid_thw": [grids.pop(0)]}
            expanded = Qwen3VLProcessor.replace_image_token(self.processor, images, 0)
            text = text.replace(self.processor.image_token, expanded.replace("<", "\0"), 1)
        if prompt.frames:
            indices = sampled_frames(self.videos, len(prompt.frames), self.fps)
            metadata = SimpleNamespace(fps=self.fps, frames_indices=indices)
            videos = {"video_grid_thw": [grids.pop(0)], "video_metadata": [metadata]}
            expanded = Qwen3VLProcessor.replace_video_token(self.processor, videos, 0)
            text = text.replace(self.processor.video_token, expanded.replace("<", "\0"), 1)
        return text.replace("\0", "<")  # so that no replacement was replaced again

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The conversation of a prompt: one turn of a user."""
        content: list[dict[str, Any]] = [{"type": "image"} for _ in prompt.images]
        content += [{"type": "video"}] if prompt.frames else []
        return [{"role": "user", "content": [*content, {"type": "text", "text": prompt.ask}]}]


def processor_template(checkpoint: Path, tokenizer: Any) -> str:
    """The chat template of the checkpoint's processor; its tokenizer's if the processor has none."""
    settings, _ = Qwen3VLProcessor.get_processor_dict(checkpoint)
    templates = settings.get("chat_template")
    processor = SimpleNamespace(chat_template=tokenizer.chat_template if templates is None else templates)
    template: str = Qwen3VLProcessor._resolve_chat_template(processor, None)
    return template
