"""The sides of `bench.py`, loaded: each answers a prompt, and a question about a picture, token by token.

A side keeps its own cache and chooses its tokens greedily; whether one of them would end the answer is ignored. This
module has ours and transformers, `peer_sides.py` the others; where their models come from is `decoder_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

QUESTION = "What is in this picture and what is it doing there?"

Mark = Callable[[], None]  # called when a token is there


class Refused(Exception):
    """This side cannot do that, and why."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the token ids of that text; each word is a token."""

    text: str
    ids: list[int]

    def start(self, tokens: int) -> Prompt:
        """Its first tokens."""
        return Prompt("".join(f" {word}" for word in self.text.split()[:tokens]), self.ids[:tokens])


def prompt_file(work: Path, context: int) -> Path:
    """Where `bench.py` writes the prompt of so many tokens, as the JSON of a `Prompt`."""
    return work / f"prompt-{context}.json"


class Side(Protocol):
    """A loaded model."""

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        """Read a prompt and generate so many tokens."""

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        """The same for pixels uint8 [height, width, 3] and a question; how many tokens the prompt had.

        Raises:
            Refused: this side has no pictures.
        """


class Ours:
    """The shipped runtime on an artifact, by its public methods alone, so that older checkouts do."""

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        from qwen3vl_export.runtime import Qwen3VL

        self.model = Qwen3VL.load(folder, threads, check=False)

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        from qwen3vl_export.runtime import Prepared
        from qwen3vl_export.runtime.positions import rope_index

        facts = self.model.facts
        ids, grid = np.array([prompt.ids]), np.zeros((0, 3), np.int64)
        positions, deltas = rope_index(ids, np.ones_like(ids), grid, facts)
        patches = np.zeros((0, facts.patch_dim), np.float32)
        self._generate(Prepared(("",), ids, np.ones_like(ids), positions, deltas, patches, grid, ()), tokens, mark)

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        from qwen3vl_export.runtime import Image

        content = [Image(pixels), QUESTION]
        prepared = self.model.prepare([[{"role": "user", "content": content}]])
        self._generate(prepared, tokens, mark)
        return int(prepared.input_ids.shape[1])

    def _generate(self, prepared: Any, tokens: int, mark: Mark) -> None:
        from qwen3vl_export.runtime import GREEDY

        for _ in self.model.generate_steps(prepared, tokens, GREEDY, stop_ids=frozenset()):
            mark()


class Transformers:
    """transformers with eager attention, float32."""

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import torch
        from transformers import Qwen3VLForConditionalGeneration

        torch.set_num_threads(threads)
        self.folder = folder
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def _generate(self, ids: Any, tokens: int, mark: Mark, **inputs: Any) -> None:
        import torch
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config.text_config)
        for _ in range(tokens):
            with torch.inference_mode():  # the cache goes by place, its name changed in transformers 5.24
                logits = self.model(torch.from_numpy(ids), None, None, cache, logits_to_keep=1, **inputs).logits
            ids, inputs = logits[:, -1].argmax(-1, keepdim=True).numpy(), {}
            mark()

    def answer(self, prompt: Prompt, tokens: int, mark: Mark) -> None:
        self._generate(np.array([prompt.ids]), tokens, mark)

    def look(self, pixels: Any, tokens: int, mark: Mark) -> int:
        import PIL.Image
        import torch
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        processor = Qwen2VLImageProcessorPil.from_pretrained(self.folder)
        found = processor(images=[PIL.Image.fromarray(pixels)], return_tensors="pt")
        config, grid = self.model.config, found["image_grid_thw"]
        image = [config.image_token_id] * (int(grid.prod()) // config.vision_config.spatial_merge_size**2)
        ids = np.array([[config.vision_start_token_id, *image, config.vision_end_token_id, *range(3, 19)]])
        kinds = torch.from_numpy((ids == config.image_token_id).astype(np.int64))
        pictures = {"pixel_values": found["pixel_values"], "image_grid_thw": grid, "mm_token_type_ids": kinds}
        self._generate(ids, tokens, mark, **pictures)
        return int(ids.shape[1])
