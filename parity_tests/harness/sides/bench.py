"""The two sides of a comparison: an artifact in the shipped runtime, and its checkpoint in PyTorch.

Prepares each case once and gives both sides the same arrays. Knows how to call the runtime; measures nothing.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import EMBED_TOKENS, INPUT_IDS, INPUTS_EMBEDS
from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Video
from qwen3vl_export.runtime.arrays import Floats, Ints
from qwen3vl_export.runtime.generate import PREFILL_CHUNK, prefill

from ..cases.matrix import Case, Matrix, Prompt
from ..judging.verdicts import Profile
from .counts import Clock, Score
from .generation_reference import GenerationReference
from .inputs import Inputs, tokens_compared
from .pixel_reference import PixelReference
from .prompt_reference import PromptReference
from .reference import REMEMBERED_CASES, Greedy, Reference
from .reference_cache import Key, Result, Store

FPS = 2.0  # frames per second of every clip in the matrix

Past = Any  # the runtime's cache, opaque here


@dataclass
class Bench:
    """Everything a check needs.

    Args:
        profile: thresholds and settings of the artifact's precision.
    """

    artifact: Artifact
    runtime: Qwen3VL
    reference: Reference
    matrix: Matrix
    profile: Profile
    exam_per_size: int
    candidate_seconds: float = 0.0  # spent in the artifact's runtime
    clock: Clock = field(default_factory=Clock)
    remembered: dict[str, Floats] = field(default_factory=dict)  # results that several checks need
    scores: dict[str, Score] = field(default_factory=dict)  # of the exam, by group
    diagnoses: Counter[str] = field(default_factory=Counter)  # how many failures were diagnosed, by stage
    dequantized: Bench | None = None  # the same artifact, compared with its dequantized weights
    results: Store | None = None  # of the artifact, between two passes over its checks
    _prepared: OrderedDict[str, tuple[list[Prompt], Prepared]] = field(default_factory=OrderedDict)

    @property
    def checkpoint(self) -> Path:
        """The directory PyTorch loads."""
        return self.reference.checkpoint

    @cached_property
    def pixel_reference(self) -> PixelReference:
        return PixelReference(self.checkpoint, FPS)

    @cached_property
    def prompt_reference(self) -> PromptReference:
        return PromptReference(self.checkpoint, FPS)

    @cached_property
    def generation_reference(self) -> GenerationReference:
        return GenerationReference(self.checkpoint)

    @cached_property
    def cases(self) -> list[Case]:
        """Every case of the matrix file."""
        return self.matrix.of_tier("full")

    @property
    def fixed_grids(self) -> list[tuple[int, int]]:
        """The (h, w) patch grids the artifact is bound to; empty if it takes any."""
        encoders = self.artifact.manifest.encoders
        return [] if any(e.grid is None for e in encoders) else [e.grid for e in encoders if e.grid is not None]

    def prepared(self, case: Case) -> Prepared:
        """The runtime's preparation of a case."""
        return self._prepare(case)[1]

    def prompts(self, case: Case) -> list[Prompt]:
        return self._prepare(case)[0]

    def inputs(self, case: Case) -> Inputs:
        return as_inputs(self.prepared(case))

    def vision_inputs(self, case: Case) -> tuple[Floats, Ints]:
        """Patches [P, patch_dim] and grids [I, 3]: the case's pictures, or random patches for a vision-only case."""
        if case.is_vision_only:
            return self.matrix.random_pixels(case, self.artifact.manifest.facts.patch_dim), case.grid_thw
        inputs = self.inputs(case)
        return inputs.pixel_values, inputs.image_grid_thw

    def forced_ids(self, case: Case) -> Ints:
        """[forced_tokens] of text to follow a case's prompt."""
        ids: list[int] = []
        for sentence in self.matrix.forced_text(case):
            ids += self.runtime.tokenizer.encode(f" {sentence}" if ids else sentence)
            if len(ids) >= self.matrix.forced_tokens:
                break
        return np.array(ids[: self.matrix.forced_tokens], np.int64)

    def prepare(self, prompts: Sequence[Prompt]) -> Prepared:
        with self.timing():
            return self.runtime.prepare([conversation(prompt) for prompt in prompts])

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Counts the time spent inside as the artifact's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.candidate_seconds += time.perf_counter() - start

    def remember(self, key: str, compute: Callable[[], Floats]) -> Floats:
        """`compute()`, remembered for the checks of the same case."""
        if key not in self.remembered:
            while len(self.remembered) >= REMEMBERED_CASES:
                self.remembered.pop(next(iter(self.remembered)))
            self.remembered[key] = compute()
        return self.remembered[key]

    # The runtime, one stage at a time.

    def encode(self, pixel_values: Floats, image_grid_thw: Ints) -> Floats:
        with self.timing():
            return self.runtime.encode_images(pixel_values, image_grid_thw)

    def embed(self, input_ids: Ints, image_features: Floats) -> Floats:
        with self.timing():
            return self.runtime.embed(input_ids, image_features)

    def embed_tokens(self, input_ids: Ints) -> Floats:
        """Rows [B, S, W] of the graph that other runtimes scatter features into."""
        with self.timing():
            rows: Floats = self.runtime.sessions.run(EMBED_TOKENS, {INPUT_IDS: input_ids}, [INPUTS_EMBEDS])[0]
        return rows

    def decode(
        self, embeds: Floats, mask: Ints, position_ids: Ints, past: Past = None, keep: int | None = None
    ) -> tuple[Floats, Past]:
        """Logits of the last `keep` tokens, by default of as many as are compared."""
        keep = tokens_compared(embeds, self.artifact.manifest.facts.vocab_size) if keep is None else keep
        with self.timing():
            return self.runtime.decode(embeds, mask, position_ids, past, keep)

    def prefill(self, prepared: Prepared, chunk: int | None) -> tuple[Floats, Past]:
        """Logits [B, V] of the last tokens, and the cache."""
        features = self.encode(prepared.pixel_values, prepared.image_grid_thw)
        with self.timing():
            return prefill(self.runtime.sessions, prepared, features, chunk)

    def generate(self, prepared: Prepared, new_tokens: int, stop: bool, chunk: int | None = PREFILL_CHUNK) -> Greedy:
        """Greedy tokens of the runtime's loop and the logits of each step; with `stop`, fewer if every row ends."""
        stop_ids = self.runtime.stop_ids
        self.runtime.stop_ids = stop_ids if stop else frozenset()
        start, ends = time.perf_counter(), []
        try:
            with self.timing():
                steps = []
                for step in self.runtime.generate_steps(prepared, new_tokens, GREEDY, chunk):
                    steps.append(step)
                    ends.append(time.perf_counter())
        finally:
            self.runtime.stop_ids = stop_ids
        rows = len(prepared.input_ids)
        self.clock.add(int(prepared.attention_mask.sum()), ends[0] - start, rows * (len(ends) - 1), ends[-1] - ends[0])
        return Greedy(np.stack([step.tokens for step in steps], 1), np.stack([step.logits for step in steps], 1))

    def generated(self, case: Case) -> Greedy:
        """The artifact's greedy tokens after a case's prompt, remembered on disk where a second pass will need them."""

        tokens = self.matrix.tokens_of(case)
        return self.recall(("generated", case.name), Greedy, lambda: self.generate(self.prepared(case), tokens, False))

    def recall(self, key: Key, kind: type[Result], compute: Callable[[], Result]) -> Result:
        """A result of the artifact, computed once, where checks are carried out in rounds."""
        result = self.results.get(key, kind) if self.results is not None else None
        if result is None:
            result = compute()
            if self.results is not None:
                self.results.put(key, result)
        return result

    def settle(self, report: Callable[[str, int], None]) -> None:
        """Have PyTorch compute what was deferred, with the artifact's sessions closed meanwhile."""
        references = [self.reference, *([self.dequantized.reference] if self.dequantized is not None else [])]
        if any(reference.requests for reference in references):
            self.runtime.sessions.close()
        for reference in references:
            reference.settle(report)

    @property
    def num_maps(self) -> int:
        return self.artifact.manifest.facts.num_deepstack

    def no_features(self) -> Floats:
        return np.empty((0, self.artifact.manifest.facts.wide_size), np.float32)

    def _prepare(self, case: Case) -> tuple[list[Prompt], Prepared]:
        if case.name not in self._prepared:
            prompts = self.matrix.draw(case)
            self._prepared[case.name] = (prompts, self.prepare(prompts))
            while len(self._prepared) > REMEMBERED_CASES:
                self._prepared.popitem(last=False)
        return self._prepared[case.name]


def conversation(prompt: Prompt) -> list[dict[str, Any]]:
    """One user turn in the runtime's message format."""
    content: list[Any] = [{"type": "image", "image": Image(image)} for image in prompt.images]
    if prompt.frames:
        content.append({"type": "video", "video": Video(prompt.frames, FPS)})
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt.ask}]}]


def as_inputs(prepared: Prepared) -> Inputs:
    return Inputs(prepared.input_ids, prepared.attention_mask, prepared.pixel_values, prepared.image_grid_thw)
