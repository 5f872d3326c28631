"""onnxruntime-genai, driven as its users drive it: a directory, a prompt's text, encoded pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from qwen3vl_export import contract
from qwen3vl_export.runtime.arrays import Floats

from ..harness.sides.pytorch.inputs import Inputs
from .answer import Answer
from .pictures import Picture, png


class Genai:
    """One directory, loaded unmodified.

    Args:
        patch_dim: values of one patch, for prompts without a picture.
    """

    def __init__(self, directory: Path, patch_dim: int) -> None:
        self.patch_dim = patch_dim
        self.model = og.Model(str(directory))
        self.processor = self.model.create_multimodal_processor()
        self.tokenizer = og.Tokenizer(self.model)

    def answer(self, text: str, images: Sequence[Picture], new_tokens: int) -> Answer:
        """The greedy answer to one prompt."""
        named = self.process(text, images)
        generator = self.generator(named["input_ids"].shape()[-1] + new_tokens)
        generator.set_inputs(named)
        tokens: list[int] = []
        logits: list[Floats] = []
        while not generator.is_done():
            generator.generate_next_token()
            logits.append(np.asarray(generator.get_output(contract.LOGITS), np.float32))
            tokens.append(int(generator.get_next_tokens()[0]))
        last = np.concatenate([step[0, -1:] for step in logits])
        return Answer(self.inputs(named), np.array(tokens), last, prompt_logits=logits[0])

    def process(self, text: str | list[str], images: Sequence[Picture]) -> Any:
        """Its processor's tensors, by name."""
        files = [png(image) for image in images]
        return self.processor(text, images=og.Images.open_bytes(*files) if files else None)

    def inputs(self, named: Any) -> Inputs:
        """Those tensors as arrays."""
        ids = named["input_ids"].as_numpy().astype(np.int64)
        pixels, grid = np.empty((0, self.patch_dim), np.float32), np.empty((0, 3), np.int64)
        if contract.PIXEL_VALUES in named.keys():  # noqa: SIM118 - not a dict
            grid = np.array(named[contract.IMAGE_GRID_THW].as_numpy(), np.int64).reshape(-1, 3)
            padded = named[contract.PIXEL_VALUES].as_numpy().reshape(len(grid), -1, self.patch_dim)
            rows = zip(padded, grid.prod(1), strict=True)  # as many for each picture as the largest has
            pixels = np.concatenate([patches[:count] for patches, count in rows])
        return Inputs(ids, np.ones_like(ids), pixels, grid)

    def generator(self, max_length: int, batch_size: int = 1) -> Any:
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=max_length, batch_size=batch_size, do_sample=False)
        return og.Generator(self.model, params)

    def texts(self, prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Greedy answers to prompts without pictures, as one batch."""
        ids = self.tokenizer.encode_batch(list(prompts))
        generator = self.generator(ids.shape()[-1] + new_tokens, len(prompts))
        generator.append_tokens(ids)
        start = generator.token_count()
        while not generator.is_done():
            generator.generate_next_token()
        return [self.tokenizer.decode(generator.get_sequence(row)[start:]) for row in range(len(prompts))]
