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
from ..checkpoint.names import HEAD, TABLE, checkpoint_name, foreign_prefix
from ..checkpoint.safetensors_file import WEIGHT_DTYPES
from ..checkpoint.tensors import StoredReader, equal_values
from ..unroll import Stack
from . import attention, experts
from .decoder import DECODERS
from .embedding import Embeddings, EmbedTokens
from .half_range import widen_mlps
from .layers import decoder_stack, tower_stack
from .vision import VisionEncoder

TOWER = "model.visual."
LAYERS = {  # prefix of the layers' tensors -> one that every layer has
    "model.language_model.layers.": "input_layernorm.weight",
    "model.visual.blocks.": "norm1.weight",
}
DAMAGED = "Download the checkpoint again, or check that it is an unmodified Qwen3-VL"
NAMED = 3  # of many tensors in a warning

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
        if dtype == torch.float16:
            widen_mlps(visual)
        stack = None if all_layers else tower_stack(visual)
        module = VisionEncoder(visual, target, grid)
        graph = contract.vision_encoder(facts, name, grid)
        return Submodule(graph, module.eval(), mode, stack=stack)
    elif name == contract.DECODER:
        text._attn_implementation = attention.TEXT_ATTENTION[target]
        text._experts_implementation = experts.EXPERTS_IMPLEMENTATION
        with _fake_weights(mode, dtype):
            language_model = text_model(text)
        decoder = DECODERS[facts.head](language_model)
        with _fake_weights(mode, dtype):
            decoder.add_projection()
        del language_model.embed_tokens
        if dtype == torch.float16:
            widen_mlps(language_model)
        stack = None if all_layers else decoder_stack(language_model, facts.num_deepstack)
        traced_facts = replace(facts, num_hidden_layers=len(language_model.layers))
        return Submodule(
            contract.decoder(facts), decoder.eval(), mode, _arrange_decoder, stack, contract.decoder(traced_facts)
        )
    else:
        with _fake_weights(mode, dtype):
            table = nn.Embedding(text.vocab_size, text.hidden_size)
        if name == contract.EMBED_TOKENS:
            module, graph = EmbedTokens(table, facts.num_deepstack), contract.embed_tokens(facts)
        else:
            module = Embeddings(table, facts.num_deepstack, facts.image_token_id, facts.video_token_id)
            graph = contract.embeddings(facts)
    return Submodule(graph, module.eval(), mode)


def check_tensors(
    checkpoint: Checkpoint, dtype: torch.dtype, tower: bool = True, log: Callable[[str], None] = lambda line: None
) -> None:
    """Compare the checkpoint's tensors with the parameters of every graph's module.

    Args:
        tower: whether the vision tower is needed, and not only the decoder and the token table.
        log: takes a warning for everything in the files that transformers reads otherwise than their author may think.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not of a floating type.
    """
    tensors = checkpoint.tensors
    _check_layers(checkpoint, tower)
    tied = checkpoint.tied
    expected: dict[str, tuple[int, ...]] = {}
    for graph in (*([contract.VISION_ENCODER] if tower else []), contract.EMBED_TOKENS, contract.DECODER):
        module = build_submodule(checkpoint, graph, "ort", dtype, all_layers=True).module
        expected |= {checkpoint_name(name, tied): tuple(p.shape) for name, p in module.named_parameters()}
    for name, shape in expected.items():
        if name not in tensors:
            raise _missing(checkpoint, name, f"tensor {name} {list(shape)} is missing")
        entry = tensors[name]
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.file}: tensor {name} is {list(entry.shape)}, config.json asks for {list(shape)}", DAMAGED
            )
        if entry.dtype not in WEIGHT_DTYPES.values():
            raise CheckpointError(
                f"{entry.file}: tensor {name} has dtype {entry.dtype}, weights have {', '.join(WEIGHT_DTYPES)}",
                "Use an unquantized Qwen3-VL checkpoint",
            )
    ignored = {HEAD} if tied or checkpoint.facts.head != contract.TEXT else set()
    extra = set(tensors) - set(expected) - ignored
    _warn(checkpoint, [name for name in extra if tower or not name.startswith(TOWER)], log)


def _check_layers(checkpoint: Checkpoint, tower: bool) -> None:
    """Refuse a config.json with more layers than the files hold, before a module of that many layers is made."""
    config = checkpoint.config
    counts = (config.text_config.num_hidden_layers, config.vision_config.depth if tower else 0)
    for (prefix, tensor), count in zip(LAYERS.items(), counts, strict=True):
        stored = {name.removeprefix(prefix).partition(".")[0] for name in checkpoint.tensors if name.startswith(prefix)}
        missing = next((index for index in range(count) if str(index) not in stored), None)
        if missing is not None:
            what = f"tensors {prefix}{missing}.… are missing, config.json asks for {count} layers"
            raise _missing(checkpoint, f"{prefix}{missing}.{tensor}", what)


def _missing(checkpoint: Checkpoint, name: str, what: str) -> CheckpointError:
    """The error for tensors that start with `name`: what other programs called them, if they are stored."""
    tensors = checkpoint.tensors
    if prefixes := foreign_prefix(name, tensors):
        return CheckpointError(
            f"{checkpoint.root}: names of tensors begin with {prefixes[0]} where transformers reads {prefixes[1]}",
            "Rename them, or save the model itself, not a wrapper of it, with save_pretrained",
        )
    if name.startswith(TOWER) and not any(tensor.startswith(TOWER) for tensor in tensors):
        return CheckpointError(
            f"{checkpoint.root}: has no vision tower; {what}",
            f"Build text graphs alone: write graphs: [{contract.EMBED_TOKENS}, {contract.DECODER}] in the recipe",
        )
    if name == HEAD:
        return CheckpointError(
            f"{checkpoint.root}: {what}", f"{DAMAGED}; of an embedding model, which has none, write head: embedding"
        )
    return CheckpointError(f"{checkpoint.root}: {what}", DAMAGED)


def _warn(checkpoint: Checkpoint, extra: list[str], log: Callable[[str], None]) -> None:
    """Warn of tensors that are left out, of a head that a tied config does not expect, and of repeated tensors."""
    if extra:
        named = ", ".join(sorted(extra)[:NAMED]) + (f" and {len(extra) - NAMED} more" if len(extra) > NAMED else "")
        log(f"warning: {checkpoint.source}: not part of the model and left out, as in transformers: {named}")
    answers = checkpoint.facts.head == contract.TEXT
    if answers and checkpoint.config.tie_word_embeddings and not checkpoint.base.tied:
        log(
            f"warning: {checkpoint.source}: config.json says tie_word_embeddings, but {HEAD} differs from {TABLE}: "
            "both are exported as they are stored, as in transformers"
        )
    for name, later in checkpoint.stored.overruled.items():
        first = checkpoint.stored.tensors[name]
        if not equal_values(StoredReader(first), StoredReader(later)):
            log(
                f"warning: {checkpoint.source}: {name} has other values in {later.file.name} than in "
                f"{first.file.name}, which the index names and which is exported; transformers loads "
                f"{later.file.name}: remove it there"
            )
