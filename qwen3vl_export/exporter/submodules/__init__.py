"""Thin nn.Module wrappers over the transformers modules, one per graph of the contract, with fake weights.

`build_submodule` returns what `trace.py` needs to export one graph. Weights are FakeTensors: a 235B decoder costs no
memory. A parameter's name maps to that of its checkpoint tensor by `checkpoint.PREFIXES` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel, Qwen3VLMoeVisionModel

from ... import contract
from ...contract import Graph
from ...errors import CheckpointError
from ..checkpoint import Checkpoint
from ..checkpoint.names import checkpoint_name
from ..unroll import Stack
from . import attention, experts
from .decoder import Decoder
from .embedding import Embeddings, EmbedTokens
from .layers import decoder_stack, tower_stack
from .vision import VisionEncoder

MODELS = {  # by model_type: vision tower and language model
    "qwen3_vl": (Qwen3VLVisionModel, Qwen3VLTextModel),
    "qwen3_vl_moe": (Qwen3VLMoeVisionModel, Qwen3VLMoeTextModel),
}


@dataclass(frozen=True)
class Submodule:
    """What is traced as one graph.

    Attributes:
        graph: its contract.
        module: has fake weights, and only `stack.traced` layers if there is a stack.
        fake_mode: of its weights.
        arrange: one value per contract input -> the positional arguments of the module.
        stack: its layers, if not all of them are traced.
        traced_graph: the contract of the module as it is, where that is not `graph`.
    """

    graph: Graph
    module: nn.Module
    fake_mode: FakeTensorMode
    arrange: Callable[[Sequence[Any]], tuple[Any, ...]] = tuple
    stack: Stack | None = None
    traced_graph: Graph | None = None


def _arrange_decoder(values: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of `Decoder`: inputs_embeds, attention_mask, position_ids, [(key, value), …], num_logits_to_keep."""
    past = values[3:-1]
    return (*values[:3], list(zip(past[::2], past[1::2], strict=True)), values[-1])


@contextmanager
def _fake_weights(mode: FakeTensorMode, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have fake parameters of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with mode:
            yield
    finally:
        torch.set_default_dtype(before)


def build_submodule(
    checkpoint: Checkpoint,
    name: str,
    target: str,
    dtype: torch.dtype,
    grid: tuple[int, int] | None = None,
    all_layers: bool = False,
) -> Submodule:
    """The module behind the graph called `name`, on fake weights of `dtype`.

    Args:
        name: a graph name of `contract.py`, or a bucket's.
        target: "ort" or "portable".
        grid: for a fixed encoder, its (h, w) in patches.
        all_layers: trace every layer, also those that `unroll.py` could copy.
    """
    config, facts = copy.deepcopy(checkpoint.config), checkpoint.facts
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    text = config.text_config
    vision_model, text_model = MODELS[facts.model_type]
    module: nn.Module
    if name.startswith(contract.VISION_ENCODER):
        with _fake_weights(mode, dtype):
            visual = vision_model(config.vision_config)
        stack = None if all_layers else tower_stack(visual)
        module = VisionEncoder(visual, target, grid)
        graph = contract.vision_encoder(facts, name, grid)
        return Submodule(graph, module.eval(), mode, stack=stack)
    elif name == contract.DECODER:
        text._attn_implementation = attention.TEXT_ATTENTION[target]
        text._experts_implementation = experts.EXPERTS_IMPLEMENTATION
        with _fake_weights(mode, dtype):
            language_model = text_model(text)
            lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        del language_model.embed_tokens
        stack = None if all_layers else decoder_stack(language_model, facts.num_deepstack)
        traced_facts = replace(facts, num_hidden_layers=len(language_model.layers))
        module = Decoder(language_model, lm_head).eval()
        return Submodule(contract.decoder(facts), module, mode, _arrange_decoder, stack, contract.decoder(traced_facts))
    else:
        with _fake_weights(mode, dtype):
            table = nn.Embedding(text.vocab_size, text.hidden_size)
        if name == contract.EMBED_TOKENS:
            module, graph = EmbedTokens(table, facts.num_deepstack), contract.embed_tokens(facts)
        else:
            module = Embeddings(table, facts.num_deepstack, facts.image_token_id, facts.video_token_id)
            graph = contract.embeddings(facts)
    return Submodule(graph, module.eval(), mode)


def check_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Compare the checkpoint's tensors with the parameters of every graph's module.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not part of this architecture.
    """
    tied = checkpoint.tied
    expected: dict[str, tuple[int, ...]] = {}
    for graph in (contract.VISION_ENCODER, contract.EMBED_TOKENS, contract.DECODER):
        module = build_submodule(checkpoint, graph, "ort", dtype, all_layers=True).module
        expected |= {checkpoint_name(name, tied): tuple(p.shape) for name, p in module.named_parameters()}
    tensors = checkpoint.tensors
    advice = "Download the checkpoint again, or check that it is an unmodified Qwen3-VL"
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{checkpoint.root}: tensor {name} {list(shape)} is missing", advice)
        entry = tensors[name]
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.file}: tensor {name} is {list(entry.shape)}, config.json asks for {list(shape)}", advice
            )
    extra = sorted(set(tensors) - set(expected) - ({"lm_head.weight"} if tied else set()))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise CheckpointError(f"{tensors[extra[0]].file}: unexpected tensor {extra[0]}{more}", advice)
