"""What PyTorch was asked for, joined into as few calls of the model as answer it.

Everything that is asked about one prompt is answered by one call: the tower's features, the prompt's logits, and those
of every text that follows it. Knows inputs and sizes; nothing about how a call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qwen3vl_export.runtime.arrays import Ints

from ...budget import sizes
from ...budget.sizes import ModelSizes
from .inputs import Inputs
from .reference_cache import Key

WAITING = 1 << 29  # bytes of activations that wait between two modules; calls beyond it take another pass
FLOAT32 = 4

Item = TypeVar("Item")


def unchanged(result: Item) -> Item:
    return result


@dataclass(frozen=True)
class Request:
    """A result that was asked for.

    Attributes:
        compute: computes it alone.
        inputs: the prompt, or the pictures alone, that it is about; None if it cannot be joined with another.
        ids: [B, T] of a text that follows the prompt; None if it is about the prompt.
        keep: makes of the `Continuation` of that text what is stored of it.
        waiting_bytes: in memory while it waits for its next module, if it is computed alone.
    """

    compute: Callable[[], Any]
    inputs: Inputs | None = None
    ids: Ints | None = None
    keep: Callable[[Any], Any] = unchanged
    waiting_bytes: int = 0


@dataclass
class Call:
    """A call of the model: a prompt, or pictures alone, and under which keys its results are stored.

    Attributes:
        prompt: the key of the prompt's results; None if they are not asked for.
        texts: the requests about texts that follow the prompt, by the key of their results.
    """

    inputs: Inputs
    prompt: Key | None = None
    texts: dict[Key, Request] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether the language model runs."""
        return self.prompt is not None or bool(self.texts)

    def waiting_bytes(self, model: ModelSizes) -> int:
        """Bytes that are in memory while the call waits for its next module."""
        batch, tokens = self.inputs.input_ids.shape
        tokens += sum(request.ids.shape[1] for request in self.texts.values() if request.ids is not None)
        patches = len(self.inputs.pixel_values)
        return FLOAT32 * model.held(sizes.Call(batch, tokens, frames=(patches,) if patches else ()))


def join(requests: Mapping[Key, Request]) -> list[Call]:
    """The calls that answer every request that can be joined with others; features of pictures come with any call."""
    calls: dict[str, Call] = {}
    for key, request in requests.items():
        if request.inputs is None:
            continue
        call = calls.setdefault(request.inputs.key, Call(request.inputs))
        if request.ids is not None:
            call.texts[key] = request
        elif request.inputs.input_ids.size:
            call.prompt = key
    read = {call.inputs.pictures_key for call in calls.values() if call.reads}
    return [call for call in calls.values() if call.reads or call.inputs.pictures_key not in read]
