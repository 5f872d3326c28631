"""The PyTorch side: transformers' Qwen3-VL in float32 with eager attention.

Takes prepared inputs (ids, mask, pixels, grids) and returns numpy arrays. Nothing of the model is reimplemented: rows,
positions and DeepStack maps are recorded where transformers passes them to its language model, tokens come from its
`generate`. Knows nothing about the artifact or its runtime. Results are cached by the content of the inputs: a few in
memory, all of them on disk (`reference_cache.py`). The checkpoint is loaded when something has to be computed.

Legend: B batch, S tokens, T new tokens, V vocabulary; P patches, I images, N image tokens; H hidden size, D DeepStack
maps, W = (1 + D) * H.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from qwen3vl_export.errors import ParityError
from qwen3vl_export.runtime.arrays import Float32, Ints

from .inputs import Inputs, model_arguments, tokens_compared
from .reference_cache import Key, Store
from .streamed_model import Change, StreamedModel
from .torch_model import WholeModel, load_model, stream_model

SMALL_MODEL = 100_000_000  # parameters; below it threads cost more than they bring
VISION = "vision"  # in the key of a result of the tower alone
REMEMBERED_CASES = 6  # results cached in memory; the plan goes case by case, so a few are enough

Result = TypeVar("Result")


class Deferred(Exception):
    """A result of PyTorch is not there yet: `Reference.settle` computes it."""


@dataclass(frozen=True)
class Prefill:
    """One forward pass over the prompt."""

    position_ids: Ints  # [3, B, S]
    rope_deltas: Ints  # [B, 1]
    inputs_embeds: Float32  # [B, S, W]
    image_features: Float32  # [N, W]
    logits: Float32  # [B, N, V] of the last N tokens, see `tokens_compared`: all of them, unless the prompt is long


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
        streamed: keep the weights on disk and load a module at a time. A result that is not in `store` is then not
            computed when it is asked for: `Deferred` is raised, and `settle` computes all that were asked for at once.
    """

    def __init__(
        self,
        checkpoint: Path,
        store: Store | None = None,
        change: Change | None = None,
        neighbours: Sequence[Reference] = (),
        adapters: Sequence[Path] = (),
        streamed: bool = False,
    ) -> None:
        if not (checkpoint / "config.json").is_file():
            raise ParityError(f"{checkpoint}: no checkpoint here", "Pass --checkpoint DIR")
        self.checkpoint = checkpoint
        self.store = store
        self.change = change
        self.neighbours = list(neighbours)
        self.adapters = tuple(adapters)
        self.streamed = streamed
        self.requests: dict[Key, Callable[[], Any]] = {}  # deferred results, and what computes them
        self._settled: set[Key] = set()  # keys of requests that were computed
        self.seconds = 0.0  # spent in PyTorch
        self.computed = 0  # results that PyTorch had to compute
        self.from_disk = 0  # results an earlier run had computed
        self._cache: OrderedDict[Key, Any] = OrderedDict()

    stop_ids: list[int]  # known once the model is loaded

    @cached_property
    def loaded(self) -> WholeModel | StreamedModel:
        """transformers' model; decoding is greedy and inherits nothing from the checkpoint's generation settings."""
        start = time.perf_counter()
        for neighbour in self.neighbours:
            neighbour.unload()
        loaded: WholeModel | StreamedModel
        if self.streamed:
            loaded = stream_model(self.checkpoint, self.adapters, self.change)
        else:
            loaded = WholeModel(load_model(self.checkpoint, self.adapters), self.change)
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
        return 1 if self.model.num_parameters() < SMALL_MODEL else torch.get_num_threads()

    # Results the checks need.

    @property
    def hidden_size(self) -> int:
        size: int = self.model.config.text_config.hidden_size
        return size

    def vision(self, pixel_values: Float32, image_grid_thw: Ints, remember: bool = True) -> Float32:
        """Wide features of the vision tower alone: [P, patch_dim], [I, 3] -> [N, W]."""

        def compute() -> Float32:
            output = self.model.model.visual(torch.from_numpy(pixel_values), grid_thw=torch.from_numpy(image_grid_thw))
            return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1).numpy()

        if not remember:
            return self._compute(compute)
        empty = np.empty((0, 0), np.int64)
        key = (VISION, Inputs(empty, empty, pixel_values, image_grid_thw).key)
        return self.remember(key, np.ndarray, compute)

    def prefill(self, inputs: Inputs) -> Prefill:
        """The whole model over the prompt."""

        def compute() -> Prefill:
            return self._prefill(inputs, self._compared(inputs.input_ids))

        return self.remember(("prefill", inputs.key), Prefill, compute)

    def last_logits(self, inputs: Inputs, count: int) -> Float32:
        """The whole model over given tokens: logits [B, count, V] of the last ones."""
        key = ("last logits", inputs.key, count)
        return self.remember(key, np.ndarray, lambda: self._prefill(inputs, count).logits)

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
        hidden, *maps = torch.split(torch.from_numpy(inputs_embeds), self.hidden_size, dim=-1)
        every_token = torch.ones(hidden.shape[:2], dtype=torch.bool)
        output = self.model.model.language_model(
            inputs_embeds=hidden,
            attention_mask=torch.from_numpy(attention_mask),
            position_ids=torch.from_numpy(position_ids),
            visual_pos_masks=every_token,  # text rows of the maps are zero
            deepstack_visual_embeds=[wide.reshape(-1, hidden.shape[-1]) for wide in maps],
        )
        kept = self._compared(inputs_embeds) if count is None else count
        logits: Float32 = self.model.lm_head(output.last_hidden_state[:, -kept:]).numpy()
        return logits

    @property
    def counts(self) -> dict[str, int]:
        """How many results were computed, how many an earlier run had computed, how many of the former streamed."""
        return {
            "computed": self.computed,
            "from_disk": self.from_disk,
            "streamed": self.computed if self.streamed else 0,
        }

    def parameter(self, name: str) -> Float32:
        """A weight of the model, by its name there."""
        values: Float32 = self.loaded.parameter(name).numpy()
        return values

    # How they are computed.

    def _compared(self, rows: NDArray[Any]) -> int:
        """`tokens_compared` of a prompt [B, S, ...]."""
        return tokens_compared(rows, self.model.config.text_config.vocab_size)

    def _prefill(self, inputs: Inputs, count: int) -> Prefill:
        """With logits of the last `count` tokens."""
        recorded: dict[str, Any] = {}

        def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            recorded.update(kwargs)

        kwargs = model_arguments(inputs, self.model.config)
        position_ids, rope_deltas = self._positions(kwargs)
        if not inputs.image_grid_thw.size:  # without pictures transformers counts padding into the positions
            kwargs["position_ids"] = position_ids
        with pre_forward_hook(self.model.model.language_model, record):
            logits = self.model(**kwargs, logits_to_keep=count).logits
        hidden, visual = recorded["inputs_embeds"], recorded["visual_pos_masks"]
        wide = hidden.new_zeros(*hidden.shape[:2], (1 + self._num_maps) * hidden.shape[-1])
        wide[..., : hidden.shape[-1]] = hidden
        if visual is not None:
            wide[visual] = torch.cat([hidden[visual], *recorded["deepstack_visual_embeds"]], dim=-1)
        features = wide[visual] if visual is not None else wide.new_empty(0, wide.shape[-1])
        return Prefill(
            recorded["position_ids"].numpy(), rope_deltas.numpy(), wide.numpy(), features.numpy(), logits.numpy()
        )

    def _generate(self, inputs: Inputs, new_tokens: int, stop: bool) -> Greedy:
        kwargs = model_arguments(inputs, self.model.config)
        output = self.model.generate(
            **kwargs,
            max_new_tokens=new_tokens,
            eos_token_id=self.stop_ids if stop else None,
            pad_token_id=self.stop_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[:, inputs.input_ids.shape[1] :]
        return Greedy(ids.numpy(), torch.stack(output.logits, dim=1).numpy())

    def _positions(self, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        positions: tuple[Tensor, Tensor] = self.model.model.get_rope_index(**{name: kwargs.get(name) for name in names})
        return positions

    @property
    def _num_maps(self) -> int:
        return len(self.model.config.vision_config.deepstack_visual_indexes)

    def remember(self, key: Key, kind: type[Result], compute: Callable[[], Result]) -> Result:
        """A result of the model: from memory, from disk, or computed.

        Raises:
            Deferred: the model is streamed, and the result is to be computed by `settle`.
        """
        if key not in self._cache:
            self._cache[key] = self._recall(key, kind, compute)
            while len(self._cache) > REMEMBERED_CASES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        result: Result = self._cache[key]
        return result

    def _recall(self, key: Key, kind: type[Result], compute: Callable[[], Result]) -> Result:
        """Read from disk, or computed and stored there."""
        stored = self.store.get(key, kind) if self.store is not None else None
        if stored is not None:
            self.from_disk += 1
            return stored
        if self.streamed:
            if key in self._settled:
                raise ParityError(
                    "PyTorch's results do not fit into their cache", "Free disk space, or name fewer --case"
                )
            self.requests[key] = compute
            raise Deferred
        result = self._compute(compute)
        self.computed += 1
        if self.store is not None:
            self.store.put(key, result)
        return result

    def settle(self, report: Callable[[str, int], None] = lambda *_: None) -> None:
        """Compute every result that was deferred, all of them in step, and store them.

        Args:
            report: is told the name of each module that is loaded, and for how many results.

        Raises:
            ParityError: the disk refuses a result.
        """
        requests, self.requests = self.requests, {}
        together = {key: compute for key, compute in requests.items() if key[0] != VISION}
        for group in (together, *({key: compute} for key, compute in requests.items() if key not in together)):
            self._compute_all([partial(self._store, key, compute) for key, compute in group.items()], report)
        self.computed += len(requests)
        self._settled |= requests.keys()

    def _store(self, key: Key, compute: Callable[[], Any]) -> None:
        assert self.store is not None
        self.store.put(key, compute())
        if not self.store.path(key).is_file():
            raise ParityError(
                f"{self.store.root}: the disk refused a result of PyTorch", "Free some space, or --cache DIR"
            )

    def _compute(self, compute: Callable[[], Result]) -> Result:
        return self._compute_all([compute])[0]

    def _compute_all(
        self, computations: Sequence[Callable[[], Result]], report: Callable[[str, int], None] = lambda *_: None
    ) -> list[Result]:
        """Results without gradients, on this model's threads, their time counted."""
        self.model.model.rope_deltas = None  # transformers keeps it between calls

        def guard(compute: Callable[[], Result]) -> Result:
            with torch.no_grad(), self.threading():
                return compute()

        start = time.perf_counter()
        try:
            return self.loaded.run([partial(guard, compute) for compute in computations], report)
        finally:
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


def eos_ids(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return list(ids) if isinstance(ids, (list, tuple)) else [ids]


@contextmanager
def pre_forward_hook(module: torch.nn.Module, function: Callable[..., None]) -> Iterator[None]:
    """Inside, `function` is called before the module runs in this thread."""
    thread = threading.get_ident()

    def hook(*args: Any) -> None:
        if threading.get_ident() == thread:
            function(*args)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
