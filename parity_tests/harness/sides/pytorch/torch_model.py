"""transformers' model of a checkpoint in float32: as a whole in memory, or streamed a module at a time.

Eager attention (`attention.py`) and eager experts. Knows how a checkpoint becomes a model; nothing about what is
computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from qwen3vl_export.contract import EMBEDDING, RERANKER, TEXT

from .adapters import merge_adapters, untie
from .attention import ATTENTION
from .device import CPU
from .restored_weights import restored_weights, restoring
from .streamed_model import Change, StreamedModel

MODELS = {"qwen3_vl": Qwen3VLForConditionalGeneration, "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration}
EAGER = {"attn_implementation": ATTENTION, "experts_implementation": "eager"}

Result = TypeVar("Result")


class WholeModel:
    """A model with all its weights in memory.

    Args:
        change: is applied to it once, under the name "".
        device: that it is moved to.
    """

    def __init__(self, model: Any, change: Change | None, device: torch.device) -> None:
        self.model = model
        if change is not None:
            untie(model)
            change("", model)
        model.to(device)

    def run(
        self, computations: Sequence[Callable[[], Result]], report: Callable[[str, int], None] = lambda *_: None
    ) -> list[Result]:
        """The results of computations that call the model, one after the other."""
        return [compute() for compute in computations]

    def parameter(self, name: str) -> torch.Tensor:
        """float32, by its name in the model."""
        value: torch.Tensor = self.model.get_parameter(name)
        return value.detach()


def load_model(checkpoint: Path, adapters: Sequence[Path] = (), head: str = TEXT) -> Any:
    """The checkpoint's model with its adapters merged, weights restored if transformers cannot."""
    config, settings = read_config(checkpoint)
    weights = restored_weights(checkpoint, settings)
    source = checkpoint if weights is None else None
    cls = MODELS[config.model_type]
    model = cls.from_pretrained(source, state_dict=weights, config=config, dtype=torch.float32, **EAGER)
    if weights is not None:
        set_generation_config(model, checkpoint)
    return end_in(merge_adapters(model, checkpoint, adapters).eval(), checkpoint, head)


def stream_model(
    checkpoint: Path,
    adapters: Sequence[Path] = (),
    change: Change | None = None,
    device: torch.device = CPU,
    head: str = TEXT,
) -> StreamedModel:
    """The checkpoint's model with its weights on disk, adapters merged into each module that is loaded."""
    config, settings = read_config(checkpoint)
    with torch.device("meta"):
        model = MODELS[config.model_type]._from_config(config, dtype=torch.float32, **EAGER).eval()
    compute_buffers(model)
    set_generation_config(model, checkpoint)

    def merge(model: Any, is_loaded: Callable[[str], bool]) -> Any:
        return merge_adapters(model, checkpoint, adapters, is_loaded)

    restore, end = restoring(checkpoint, settings), partial(end_in, checkpoint=checkpoint, head=head)
    return StreamedModel(model, checkpoint, restore, merge if adapters else None, change, device, end)


class AnswerHead(nn.Linear):
    """The rows of an output head that belong to some tokens.

    Args:
        head: whose weight it has.
        ids: of the tokens.
    """

    def __init__(self, head: nn.Linear, ids: Sequence[int]) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight = head.weight
        self.ids = list(ids)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight[self.ids])


def end_in(model: Any, checkpoint: Path, head: str) -> Any:
    """The model, whose logits are what the decoder of a head returns: every token's, last hidden states (it may have
    been loaded without an `lm_head`), or those of yes and no."""
    if head == EMBEDDING:
        model.lm_head = nn.Identity()
    elif head == RERANKER:
        vocabulary = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
        model.lm_head = AnswerHead(model.lm_head, [vocabulary["yes"], vocabulary["no"]])
    return model


def read_config(checkpoint: Path) -> tuple[Any, Any]:
    """The configuration without `quantization_config`, and that."""
    config = AutoConfig.from_pretrained(checkpoint)
    settings = getattr(config, "quantization_config", None) or getattr(config.text_config, "quantization_config", None)
    for owner in (config, config.text_config):
        owner.quantization_config = None
    return config, settings


def set_generation_config(model: Any, checkpoint: Path) -> None:
    if (checkpoint / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint)


def compute_buffers(model: Any) -> None:
    """Make the modules that hold only computed buffers anew, off the meta device: the rotary frequencies."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            owner, _, attribute = name.rpartition(".")
            config = model.config.vision_config if ".visual." in f".{name}." else model.config.text_config
            setattr(model.get_submodule(owner), attribute, type(module)(config))
