"""The PyTorch side: transformers' Qwen3-VL in float32 with eager attention.

Takes prepared inputs (ids, mask, pixels, grids) and returns numpy arrays; `forward.py` calls the model. Knows nothing
about the artifact or its runtime. Results are cached by the content of the inputs (`results.py`). The checkpoint is
loaded when something has to be computed.

Legend: B batch, S tokens, T new tokens, V vocabulary; P patches, I images, N image tokens; H hidden size, D DeepStack
maps, W = (1 + D) * H.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from qwen3vl_export.contract import TEXT
from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime.arrays import Float32, Ints

from ...budget.allocator import release_memory
from ...budget.sizes import ModelSizes
from ...budget.split import within
from ...judging.scales import tower_blocks
from .calls import WAITING, Call, Request, join
from .choices import Choices, read_choices
from .device import CPU
from .forward import Continuation, Prefill, encode, read, to_numpy
from .inputs import Inputs, array_key, model_arguments, tokens_compared
from .products import LargeProducts
from .reference_cache import Key, Store
from .results import VISION, Deferred, Results
from .streamed_model import Change, StreamedModel
from .torch_model import WholeModel, load_model, stream_model

SMALL_MODEL = 100_000_000  # parameters; below it threads, and streaming the model, cost more than they bring

Result = TypeVar("Result")


@dataclass(frozen=True)
class Greedy:
    """Greedy decoding: the chosen ids and the logits each was chosen from."""

    ids: Ints  # [B, T]
    logits: Float32  # [B, T, V]


class Reference:
    """A checkpoint in transformers.

    Args:
        checkpoint: directory with config.json and safetensors.
        store: results on disk; None computes everything anew.
        change: is applied to the model once it is loaded, as a whole under the name "", or module by module;
            `store` must not be that of the unchanged model.
        neighbours: references whose models, if large, are unloaded before this one's is loaded.
        adapters: directories of PEFT adapters, merged into the checkpoint in this order.
        tower: another reference whose tower has the same weights; features of pictures are shared with it on disk.
        head: what the model's last hidden states are for, of `contract.HEADS`: "logits" are what the decoder of that
            head returns.
        streamed: keep the weights on disk and load a module at a time. A result that is not in `store` is then not
            computed when it is asked for: `Deferred` is raised, and `settle` computes all that were asked for at once.
        room: gives the bytes of activations that may wait between two modules of a streamed model, with the call that
            holds the most or without it; it goes alone where all do not fit together.
        device: that computes, see `open_device`.
    """

    def __init__(
        self,
        checkpoint: Path,
        store: Store | None = None,
        change: Change | None = None,
        neighbours: Sequence[Reference] = (),
        adapters: Sequence[Path] = (),
        streamed: bool = False,
        tower: Reference | None = None,
        room: Callable[[bool], int] = lambda largest: WAITING,
        device: torch.device = CPU,
        head: str = TEXT,
    ) -> None:
        if not (checkpoint / "config.json").is_file():
            raise ParityError(f"{checkpoint}: no checkpoint here", "Pass --checkpoint DIR")
        self.checkpoint = checkpoint
        self.results: Results = Results(checkpoint, store, streamed, tower.results if tower is not None else None)
        self.change = change
        self.neighbours = list(neighbours)
        self.adapters = tuple(adapters)
        self.streamed = streamed
        self.room = room
        self.device = device
        self.head = head
        self.seconds = 0.0  # spent in PyTorch
        self._computing = False  # what is asked for meanwhile is part of a computation

    stop_ids: list[int]  # known once the model is loaded

    @cached_property
    def loaded(self) -> WholeModel | StreamedModel:
        """transformers' model; decoding is greedy and inherits nothing from the checkpoint's generation settings."""
        start = time.perf_counter()
        for neighbour in self.neighbours:
            neighbour.unload()
        loaded: WholeModel | StreamedModel
        if self.streamed:
            loaded = stream_model(self.checkpoint, self.adapters, self.change, self.device, self.head)
        else:
            loaded = WholeModel(load_model(self.checkpoint, self.adapters, self.head), self.change, self.device)
        self.stop_ids = eos_ids(loaded.model.generation_config)
        loaded.model.generation_config = GenerationConfig(do_sample=False)
        self.seconds += time.perf_counter() - start
        return loaded

    @property
    def model(self) -> Any:
        return self.loaded.model

    def unload(self) -> None:
        """Drop a large model from memory; it is loaded again when it is needed."""
        if "loaded" in vars(self) and not self.streamed and self.model.num_parameters() >= SMALL_MODEL:
            del self.loaded

    @cached_property
    def threads(self) -> int:
        return threads_for(self.model.num_parameters())

    # Results the checks need.

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """As `tower_blocks`, without loading the model."""
        return tower_blocks(json.loads((self.checkpoint / "config.json").read_text("utf-8")))

    @property
    def hidden_size(self) -> int:
        size: int = self.model.config.text_config.hidden_size
        return size

    def vision(self, pixel_values: Float32, image_grid_thw: Ints, remember: bool = True) -> Float32:
        """Wide features of the vision tower alone: [P, patch_dim], [I, 3] -> [N, W]."""
        inputs = Inputs.of_pictures(pixel_values, image_grid_thw)
        request = Request(lambda: encode(self.model, inputs, self.device), inputs)
        return self._recall(vision_key(inputs), np.ndarray, request) if remember else self._compute(request.compute)

    def prefill(self, inputs: Inputs) -> Prefill:
        """The whole model over the prompt."""

        def compute() -> Prefill:
            features = self._features(inputs)
            return read(self.model, inputs, features, self.device, count=self._compared(inputs.input_ids))[0]

        return self._recall(("prefill", inputs.key), Prefill, Request(compute, inputs))

    def continued(self, inputs: Inputs, ids: Ints) -> Continuation:
        """The whole model over the prompt and given tokens [B, T] after it."""

        def compute() -> Continuation:
            features = self._features(inputs)
            return read(self.model, inputs, features, self.device, [ids])[1][0]

        return self._recall(("continued", inputs.key, array_key(ids)), Continuation, Request(compute, inputs, ids))

    def choices(self, inputs: Inputs, text: Ints) -> Choices:
        """What the model would choose at each step of a text [1, T], T >= 1, after a prompt of one row."""
        ids = text[:, :-1]
        keep = partial(read_choices, text=text[0])

        def compute() -> Choices:
            features = self._features(inputs)
            return keep(read(self.model, inputs, features, self.device, [ids])[1][0])

        key = ("choices", inputs.key, array_key(text))
        return self._recall(key, Choices, Request(compute, inputs, ids, keep))

    def generate(self, inputs: Inputs, new_tokens: int, stop: bool = False) -> Greedy:
        """`new_tokens` greedy tokens; with `stop` fewer if every row ends its turn."""
        key = ("generate", inputs.key, new_tokens, stop)
        return self.remember(key, Greedy, lambda: self._generate(inputs, new_tokens, stop))

    def decoder(self, inputs_embeds: Float32, attention_mask: Ints, position_ids: Ints) -> Float32:
        """Language model and head alone: wide rows [B, S, W], [B, S], [3, B, S] -> logits [B, N, V] as in `Prefill`."""
        return self._compute(lambda: self.run_decoder(inputs_embeds, attention_mask, position_ids))

    def run_decoder(
        self, inputs_embeds: Float32, attention_mask: Ints, position_ids: Ints, count: int | None = None
    ) -> Float32:
        """`decoder`, as part of a computation; with logits of the last `count` tokens if that is given."""
        rows, mask, positions = (
            torch.from_numpy(array).to(self.device) for array in (inputs_embeds, attention_mask, position_ids)
        )
        hidden, *maps = torch.split(rows, self.hidden_size, dim=-1)
        kept = self._compared(inputs_embeds) if count is None else count
        with LargeProducts():
            output = self.model.model.language_model(
                inputs_embeds=hidden,
                attention_mask=mask,
                position_ids=positions,
                visual_pos_masks=torch.ones_like(hidden[..., 0], dtype=torch.bool),  # text rows of the maps are zero
                deepstack_visual_embeds=[wide.reshape(-1, hidden.shape[-1]) for wide in maps],
                use_cache=False,
            )
            logits: Float32 = to_numpy(self.model.lm_head(output.last_hidden_state[:, -kept:]))
        return logits

    def parameter(self, name: str) -> Float32:
        """A weight of the model, by its name there."""
        values: Float32 = to_numpy(self.loaded.parameter(name))
        return values

    # How they are computed.

    def _compared(self, rows: NDArray[Any]) -> int:
        """`tokens_compared` of a prompt [B, S, ...]."""
        return tokens_compared(rows, self.model.config.text_config.vocab_size, self.head)

    def _features(self, inputs: Inputs) -> Float32 | None:
        """The tower's features of a prompt's pictures, as part of a computation: computed once."""
        if not inputs.has_pictures:
            return None
        key = vision_key(inputs)
        features = self.results.find(key, np.ndarray)
        return self.results.keep(key, encode(self.model, inputs, self.device)) if features is None else features

    def _generate(self, inputs: Inputs, new_tokens: int, stop: bool) -> Greedy:
        with LargeProducts():  # the tower, too: nothing compares its features here
            output = self.model.generate(
                **model_arguments(inputs, self.model.config, self.device),
                max_new_tokens=new_tokens,
                eos_token_id=self.stop_ids if stop else None,
                pad_token_id=self.stop_ids[0],
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids = output.sequences[:, inputs.input_ids.shape[1] :]
        return Greedy(to_numpy(ids), to_numpy(torch.stack(output.logits, dim=1)))

    def remember(self, key: Key, kind: type[Result], compute: Callable[[], Result], waiting_bytes: int = 0) -> Result:
        """A result of the model: from memory, from disk, or computed.

        Args:
            waiting_bytes: in memory between two modules while it is computed.

        Raises:
            Deferred: the model is streamed, and the result is to be computed by `settle`.
        """
        return self._recall(key, kind, Request(compute, waiting_bytes=waiting_bytes))

    def _recall(self, key: Key, kind: type[Result], request: Request) -> Result:
        """As `remember`; a deferred request may be joined with others."""
        result = self.results.find(key, kind)
        if result is not None:
            return result
        if not self.streamed:
            computed: Result = self.results.keep(key, self._compute(request.compute))
            return computed
        self.results.defer(key, request)
        raise Deferred

    def settle(self, report: Callable[[str, int], None] = lambda *_: None) -> None:
        """Compute every result that was deferred, in as few passes over the checkpoint as memory allows; store them.

        Args:
            report: is told the name of each module that is loaded, and for how many calls.

        Raises:
            ParityError: the disk refuses a result.
        """
        requests = self.results.take_requests()
        if not requests:
            return
        model = ModelSizes.of(self.model.config, self.head)
        computations: list[tuple[Callable[[], Any], int]] = [
            (partial(self._answer, call), call.waiting_bytes(model)) for call in join(requests)
        ]
        computations += [
            (partial(self._answer_alone, key, request), request.waiting_bytes)
            for key, request in requests.items()
            if request.inputs is None
        ]
        computations.sort(key=itemgetter(1))
        groups = [[compute for compute, _ in computations]]
        if sum(size for _, size in computations) > self.room(True):
            groups = [*within(computations[:-1], self.room(False)), [computations[-1][0]]]
        for group in groups:
            self._compute_all(group, report)
            release_memory()  # of activations, which lie between arrays that stay: the next group needs the room

    def _answer(self, call: Call) -> None:
        """Store every result of a call."""
        features = self._features(call.inputs)
        if not call.reads:
            return
        count = 1 if call.prompt is None else self._compared(call.inputs.input_ids)
        texts = [request.ids for request in call.texts.values() if request.ids is not None]
        prefill, continuations = read(self.model, call.inputs, features, self.device, texts, count)
        if call.prompt is not None:
            self.results.keep(call.prompt, prefill)
        for (key, request), continuation in zip(call.texts.items(), continuations, strict=True):
            self.results.keep(key, request.keep(continuation))

    def _answer_alone(self, key: Key, request: Request) -> None:
        self.results.keep(key, request.compute())

    def together(self, computations: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of computations that ask for what is not stored, in one pass over a streamed checkpoint."""
        return self._compute_all(computations)

    def obtain(self, ask: Callable[[], Result]) -> Result:
        """What `ask` returns, computed at once where it was deferred."""
        try:
            return ask()
        except Deferred:
            self.settle()
            return ask()

    def _compute(self, compute: Callable[[], Result]) -> Result:
        return compute() if self._computing else self._compute_all([compute])[0]

    def _compute_all(
        self, computations: Sequence[Callable[[], Result]], report: Callable[[str, int], None] = lambda *_: None
    ) -> list[Result]:
        """Results without gradients, on this model's threads, their time counted."""
        self.model.model.rope_deltas = None  # transformers keeps it between calls

        def guard(compute: Callable[[], Result]) -> Result:
            with torch.no_grad(), self.threading():
                return compute()

        start = time.perf_counter()
        self._computing = True
        try:
            return self.loaded.run([partial(guard, compute) for compute in computations], report)
        finally:
            self._computing = False
            self.seconds += time.perf_counter() - start

    @contextmanager
    def threading(self) -> Iterator[None]:
        """Inside, PyTorch computes on as many threads as pay off for this model's size."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def threads_for(parameters: int) -> int:
    """As many threads as pay off for a model of this size."""
    return 1 if parameters < SMALL_MODEL else torch.get_num_threads()


def eos_ids(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return list(ids) if isinstance(ids, (list, tuple)) else [ids]


def vision_key(inputs: Inputs) -> Key:
    return (VISION, inputs.pictures_key)
