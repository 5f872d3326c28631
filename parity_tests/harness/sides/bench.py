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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.contract import EMBED_TOKENS, EMBEDDING, INPUT_IDS, INPUTS_EMBEDS, RERANKER, TEXT
from qwen3vl_export.runtime import GREEDY, Image, Prepared, Qwen3VL, Video
from qwen3vl_export.runtime.arrays import Floats, Ints
from qwen3vl_export.runtime.generate import Step, prefill
from qwen3vl_export.runtime.retrieval import embedding_conversation, reranker_conversation

from ..budget.activations import held_between
from ..budget.allocator import release_memory
from ..budget.resources import Resources
from ..budget.sizes import ModelSizes
from ..cases.matrix import Case, Matrix, Prompt
from ..cases.tasks import Task
from ..judging.verdicts import Profile
from .artifact.artifact_results import ArtifactResults
from .counts import Asked, Clock
from .drafts import Draft, draft_of, followed_by, visual_ids
from .lockstep import is_in_step
from .pytorch.generation_reference import GenerationReference
from .pytorch.head_reference import HeadPixels, HeadPrompts, input_of, pair_of
from .pytorch.inputs import Inputs, array_key, tokens_compared
from .pytorch.pixel_reference import PixelReference
from .pytorch.prompt_reference import PromptReference
from .pytorch.reference import Greedy, Reference
from .pytorch.results import REMEMBERED_CASES
from .pytorch.torch_model import read_config

Result = TypeVar("Result")
FPS = 2.0  # frames per second of every clip in the matrix

Integers = NDArray[np.int8]
DecoderCall = tuple[Floats, Ints, Ints]  # wide rows [B, S, W], attention mask [B, T], positions [3, B, S]


@dataclass(frozen=True)
class Prefilled:
    """A prompt that the runtime has read, of any number of tokens per call.

    Attributes:
        logits: [B, V], of the last tokens.
        cache: [2 L, tokens, K, E], keys and values of every layer at every token that is not padding; int8 of a
            quantized cache.
    """

    logits: Floats
    cache: Floats | Integers


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
    candidate_seconds: float = 0.0  # spent in the artifact's runtime
    clock: Clock = field(default_factory=Clock)
    asked: dict[str, Asked] = field(default_factory=dict)  # questions of tasks, by name
    diagnoses: Counter[str] = field(default_factory=Counter)  # how many failures were diagnosed, by stage
    dequantized: Bench | None = None  # the same artifact, compared with its dequantized weights
    float_cached: Bench | None = None  # the same artifact, with a cache that is not quantized
    results: ArtifactResults = field(default_factory=ArtifactResults)
    resources: Resources | None = None  # that the verification takes and may take
    tasks: tuple[Task, ...] = ()  # that are asked besides the plan of the recipe
    _prepared: OrderedDict[str, tuple[list[Prompt], Prepared]] = field(default_factory=OrderedDict)

    @property
    def every(self) -> list[Bench]:
        """This one, and those of the same artifact that were opened beside it."""
        return [self, *(bench for bench in (self.dequantized, self.float_cached) if bench is not None)]

    @property
    def head(self) -> str:
        return self.artifact.manifest.facts.head

    @property
    def checkpoint(self) -> Path:
        """The directory PyTorch loads."""
        return self.reference.checkpoint

    @cached_property
    def pixel_reference(self) -> PixelReference:
        return PixelReference(self.checkpoint, FPS) if self.head == TEXT else HeadPixels(self.checkpoint, FPS)

    @cached_property
    def prompt_reference(self) -> PromptReference:
        if self.head == TEXT:
            return PromptReference(self.checkpoint, FPS)
        return HeadPrompts(self.checkpoint, FPS, self.head)

    @cached_property
    def generation_reference(self) -> GenerationReference:
        return GenerationReference(self.checkpoint)

    @cached_property
    def cases(self) -> list[Case]:
        """Every case of the matrix file."""
        return self.matrix.of_tier("full")

    @cached_property
    def sizes(self) -> ModelSizes:
        """Of the checkpoint."""
        return ModelSizes.of(read_config(self.checkpoint)[0], self.head)

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
            return self.runtime.prepare([self.conversation(prompt) for prompt in prompts])

    def conversation(self, prompt: Prompt) -> list[dict[str, Any]]:
        """A prompt in the runtime's message format, as the artifact's head takes it."""
        facts = self.artifact.manifest.facts
        if self.head == EMBEDDING:
            return embedding_conversation(input_of(prompt, FPS), None, facts)
        if self.head == RERANKER:
            pair = pair_of(prompt, FPS)
            return reranker_conversation(pair.query, pair.document, None, facts)
        return conversation(prompt)

    def timed(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """`compute`, its time counted as the artifact's."""

        def timed() -> Result:
            with self.timing():
                return compute()

        return timed

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Counts the time spent inside as the artifact's; that of computations in step is counted by `settle`."""
        if is_in_step():
            yield
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.candidate_seconds += time.perf_counter() - start

    # The runtime, one stage at a time. Each result is computed once, as far as memory or disk keep it.

    def encode(self, pixel_values: Floats, image_grid_thw: Ints) -> Floats:
        """Features [N, W] of pictures: [P, patch_dim], [I, 3]."""
        key = ("features", array_key(pixel_values, image_grid_thw))
        return self.results.recall(
            key, np.ndarray, self.timed(lambda: self.runtime.encode_images(pixel_values, image_grid_thw)), shared=True
        )

    def embed(self, input_ids: Ints, image_features: Floats) -> Floats:
        """Rows [B, S, W] of tokens, with features [N, W] scattered in."""
        key = ("rows", array_key(input_ids, image_features))
        return self.results.recall(
            key, np.ndarray, self.timed(lambda: self.runtime.embed_inputs(input_ids, image_features))
        )

    def embed_tokens(self, input_ids: Ints) -> Floats:
        """Rows [B, S, W] of the graph that other runtimes scatter features into."""

        def compute() -> Floats:
            rows: Floats = self.runtime.sessions.run(EMBED_TOKENS, {INPUT_IDS: input_ids}, [INPUTS_EMBEDS])[0]
            return rows

        return self.results.recall(("token rows", array_key(input_ids)), np.ndarray, self.timed(compute))

    def decode(self, embeds: Floats, mask: Ints, position_ids: Ints, count: int | None = None) -> Floats:
        """Logits [B, count, V] of a prompt's last tokens, read in one call; None is as many as are compared."""
        facts = self.artifact.manifest.facts
        kept = tokens_compared(embeds, facts.vocab_size, facts.head) if count is None else count
        key = ("logits", array_key(embeds, mask, position_ids), kept)

        def compute() -> Floats:
            logits, _ = self.runtime.decode(embeds, mask, position_ids, num_logits_to_keep=kept)
            return logits

        return self.results.recall(key, np.ndarray, self.timed(compute), held=self.held_bytes(mask))

    def decode_steps(self, calls: Sequence[DecoderCall]) -> Floats:
        """Logits [B, T, V] of the last token of T calls of the decoder, each continuing the cache."""
        key = ("step logits", array_key(*(array for call in calls for array in call)))

        def compute() -> Floats:
            past, steps = None, []
            for call in calls:
                logits, past = self.runtime.decode(*call, past, num_logits_to_keep=1)
                steps.append(logits)
            return np.concatenate(steps, axis=1)

        held = self.held_bytes(calls[-1][1][:, : calls[0][1].shape[1]], len(calls))
        return self.results.recall(key, np.ndarray, self.timed(compute), shared=True, held=held)

    def prefill(self, prepared: Prepared, chunk: int | None) -> Prefilled:
        """A prompt read `chunk` tokens at a time; None is all of them."""
        features = self.encode(prepared.pixel_values, prepared.image_grid_thw)
        key = ("prefilled", *key_of(prepared), 0 if chunk is None else chunk)

        def compute() -> Prefilled:
            logits, cache = prefill(self.runtime.sessions, prepared, features, chunk)
            return Prefilled(logits, np.stack(cache.parts(prepared.attention_mask)))

        held = self.held_bytes(prepared.attention_mask)
        return self.results.recall(key, Prefilled, self.timed(compute), held=held)

    def generate(self, prepared: Prepared, new_tokens: int, stop: bool = False) -> Greedy:
        """Greedy tokens of the runtime's loop and the logits of each step; with `stop`, fewer if every row ends."""
        key = ("generated", *key_of(prepared), new_tokens, stop)
        compute = self.timed(lambda: self.run_loop(prepared, new_tokens, stop))
        held = self.held_bytes(prepared.attention_mask, new_tokens)
        return self.results.recall(key, Greedy, compute, shared=True, held=held)

    def run_loop(self, prepared: Prepared, new_tokens: int, stop: bool) -> Greedy:
        """`generate`, computed."""
        steps = list(self.greedy_steps(prepared, new_tokens, None if stop else frozenset()))
        return Greedy(np.stack([step.tokens for step in steps], 1), np.stack([step.logits for step in steps], 1))

    def greedy_steps(self, prepared: Prepared, new_tokens: int, stop_ids: frozenset[int] | None) -> Iterator[Step]:
        """The steps of the runtime's loop, with the best token chosen in each; their time is clocked."""
        start, ends = time.perf_counter(), []
        for step in self.runtime.generate_steps(prepared, new_tokens, GREEDY, stop_ids=stop_ids):
            ends.append(time.perf_counter())
            yield step
        rows, prompt = len(prepared.input_ids), int(prepared.attention_mask.sum())
        if not is_in_step():  # it waits for others there
            self.clock.add(prompt, ends[0] - start, rows * (len(ends) - 1), ends[-1] - ends[0])

    def draft(self, prepared: Prepared, given: Ints, most: int) -> Draft:
        """The runtime's greedy answer to a prompt of one row, where it begins with `given`, int64 [G]; at most `most`
        tokens more."""
        key = ("draft", *key_of(prepared), array_key(given), most)

        def compute() -> Draft:
            stop_ids = self.runtime.stop_ids | visual_ids(self.artifact.manifest.facts)
            return draft_of(self.greedy_steps(followed_by(prepared, given), most, stop_ids))

        held = self.held_bytes(prepared.attention_mask, len(given) + most)
        return self.results.recall(key, Draft, self.timed(compute), shared=True, held=held)

    def vectors(self, case: Case) -> Floats:
        """What `embed` returns for the prompts of a case: [B, H]."""
        inputs = [input_of(prompt, FPS) for prompt in self.prompts(case)]
        return self._of_prompts("vectors", case, lambda: self.runtime.embed(inputs))

    def pair_scores(self, case: Case) -> Floats:
        """What `rerank` returns for the prompts of a case, each a query and a document: [B]."""
        pairs = [pair_of(prompt, FPS) for prompt in self.prompts(case)]

        def compute() -> Floats:
            return np.concatenate([self.runtime.rerank(pair.query, [pair.document]) for pair in pairs])

        return self._of_prompts("scores", case, compute)

    def _of_prompts(self, name: str, case: Case, compute: Callable[[], Floats]) -> Floats:
        """A result of the runtime over the prompts of a case, which it prepares itself."""
        prepared = self.prepared(case)
        key, held = (name, *key_of(prepared)), self.held_bytes(prepared.attention_mask)
        return self.results.recall(key, np.ndarray, self.timed(compute), held=held)

    def make_room(self) -> None:
        """Close the artifact's sessions where PyTorch's model is streamed: both are never in memory together."""
        if self.reference.streamed:
            self.runtime.sessions.close()

    def settle(self, report: Callable[[str, int], None]) -> None:
        """Have one side compute what was deferred: PyTorch, with the artifact's sessions closed, once nothing is asked
        of the artifact; until then checks may ask for more that PyTorch answers in the same pass."""
        sides = self.every
        asked = [side for side in sides if side.results.requests]
        if not asked and not any(side.reference.results.requests for side in sides):
            return
        for side in sides:  # what they computed is on disk
            side.runtime.sessions.close()
            side.results.forget()
            side.reference.results.forget()
        release_memory()
        for side in asked:
            with side.timing():
                side.results.settle(report)
        if asked:
            return
        for side in sides:
            side.reference.settle(report)

    def held_bytes(self, mask: Ints, new_tokens: int = 0) -> int:
        """What a prompt [B, S] and as many tokens after it take between two pieces of the artifact."""
        rows, tokens = mask.shape
        return held_between(self.sizes, rows, tokens, new_tokens)

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


def key_of(prepared: Prepared) -> tuple[str, str]:
    """Names a prompt by what the runtime reads of it."""
    return as_inputs(prepared).key, array_key(prepared.position_ids, prepared.rope_deltas)


def as_inputs(prepared: Prepared) -> Inputs:
    return Inputs(prepared.input_ids, prepared.attention_mask, prepared.pixel_values, prepared.image_grid_thw)
