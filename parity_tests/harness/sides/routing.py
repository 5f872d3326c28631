"""Where a mixture of experts sends its tokens: which experts an artifact chose, and PyTorch sent the same way.

A router takes the best K of its logits. Where the K-th and the next are closer than the precision computed with, either
choice is as right as the other, and everything after it differs by a whole expert. The rule is that of near-tied
tokens: PyTorch is sent the artifact's way, layer by layer, and every choice that it would have made otherwise must be
such a near-tie by its own router logits there; the comparison then goes on with what it says, within the same limits as
ever. One choice that is no near-tie, and nothing is forgiven.

Knows routers by transformers' class; judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextTopKRouter

from qwen3vl_export.contract import ATTENTION_MASK, DECODER, INPUTS_EMBEDS, POSITION_IDS, past_name, present_name
from qwen3vl_export.runtime.arrays import Floats, Ints

from .bench import Bench
from .probe import reader
from .reference import Reference

SETTING = "routing_margin"
Call = tuple[Floats, Ints, Ints]  # wide rows [B, S, W], attention mask [B, T], positions [3, B, S]
Choices = list[Ints]  # for each layer of experts [B, S, K], in the order of the tokens


@dataclass(frozen=True)
class Routed:
    """PyTorch's logits to compare with.

    Attributes:
        logits: [B, S, V], of PyTorch sent the artifact's way if every choice that differs is a near-tie.
        ties: tokens and layers at which the choices differ.
        gap: the largest difference of PyTorch's router logits between an expert it chose and the one chosen instead.
        explained: whether every one of them is a near-tie.
    """

    logits: Floats
    ties: int = 0
    gap: float = 0.0
    explained: bool = True

    @property
    def measures(self) -> dict[str, float | int]:
        if not self.ties:
            return {}
        return {"routing_ties" if self.explained else "routing_differences": self.ties, "routing_gap": self.gap}


def applies(bench: Bench) -> bool:
    """Whether the artifact has experts and its profile says when routing is a near-tie."""
    return bench.artifact.manifest.facts.model_type == "qwen3_vl_moe" and SETTING in bench.profile.settings


def routed(
    bench: Bench, expected: Floats, choices: Choices, rows: Floats, attention_mask: Ints, position_ids: Ints
) -> Routed:
    """What to compare an artifact's logits with.

    Args:
        expected: PyTorch's logits [B, S, V], or the last of them.
        choices: the artifact's, see `chosen`.
        rows: the wide rows [B, S, W] that PyTorch's decoder was given.
    """
    seen = attention_mask.astype(bool)
    with sent(bench.reference, choices) as met:
        logits = bench.reference.decoder(rows, attention_mask, position_ids)
    gaps = [
        gaps_of(mine[seen], own.reshape(mine.shape)[seen], values.reshape(*seen.shape, -1)[seen])
        for mine, (values, own) in zip(choices, met, strict=True)
    ]
    differing = np.concatenate(gaps)
    if not differing.size:
        return Routed(expected)
    gap = float(differing.max())
    explained = gap <= bench.profile.settings[SETTING]
    return Routed(logits[:, -expected.shape[1] :] if explained else expected, len(differing), gap, explained)


def gaps_of(mine: Ints, theirs: Ints, logits: Floats) -> NDArray[np.float64]:
    """For each token [N] whose K experts are not the same ones, how much PyTorch prefers its own: the largest logit
    of an expert that only PyTorch chose, less the smallest of one that only the artifact chose."""
    found = []
    for a, b, values in zip(mine.tolist(), theirs.tolist(), logits.astype(np.float64), strict=True):
        only_theirs, only_mine = set(b) - set(a), set(a) - set(b)
        if only_theirs:
            found.append(max(values[list(only_theirs)]) - min(values[list(only_mine)]))
    return np.array(found, np.float64)


def chosen(bench: Bench, calls: Iterable[Call]) -> Choices:
    """The experts that the artifact's decoder chooses in one call after another, each continuing the cache."""
    path = bench.artifact.graph_path(DECODER)
    graph = onnx.load(path, load_external_data=False).graph
    facts = bench.artifact.manifest.facts
    routed = [node.output[1] for node in graph.node if node.op_type == "TopK"]
    cached = [(index, part) for index in range(facts.num_hidden_layers) for part in ("key", "value")]
    names = [*routed, *(present_name(*one) for one in cached)]
    run = reader(path, names, bench.runtime.sessions.threads)
    past: dict[str, NDArray[Any]] = {}
    found: list[Choices] = []
    for rows, attention_mask, position_ids in calls:
        if not past:
            empty = np.zeros((len(rows), facts.num_key_value_heads, 0, facts.head_dim), np.float32)
            past = {past_name(*one): empty for one in cached}
        given = {INPUTS_EMBEDS: rows, ATTENTION_MASK: attention_mask, POSITION_IDS: position_ids}
        values = run({**given, **past})
        past = {past_name(*one): value for one, value in zip(cached, values[len(routed) :], strict=True)}
        own = [value.reshape(*rows.shape[:2], -1) for value in values[: len(routed)]]
        found.append([in_order(bench, value, attention_mask) for value in own])
    return [np.concatenate(layer, axis=1) for layer in zip(*found, strict=True)]


def in_order(bench: Bench, choices: Ints, attention_mask: Ints) -> Ints:
    """Choices [B, S, K] in the order of the tokens: the ort graph moves each row's tokens to its start."""
    if bench.artifact.manifest.recipe["target"] == "portable":
        return choices
    first = attention_mask[:, -choices.shape[1] :].argmax(1)
    return np.stack([np.roll(row, at, 0) for row, at in zip(choices, first, strict=True)])


@contextmanager
def sent(reference: Reference, choices: Choices) -> Iterator[list[tuple[Floats, Ints]]]:
    """Inside, PyTorch's routers choose these experts, each with the share its own logits give it; yields what each
    router met: its logits [B * S, E] and the experts [B * S, K] it would have chosen."""
    met: list[tuple[Floats, Ints]] = []

    def send(to: Ints) -> Any:
        def hook(module: Any, given: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits, _, own = output
            met.append((logits.numpy(), own.numpy()))
            experts = torch.from_numpy(to.reshape(-1, to.shape[-1]).astype(np.int64))
            shares = logits.softmax(-1).gather(1, experts)
            return logits, shares / shares.sum(-1, keepdim=True), experts

        return hook

    with ExitStack() as stack:
        for router, to in zip(routers(reference), choices, strict=True):
            stack.callback(router.register_forward_hook(send(to)).remove)
        yield met


def routers(reference: Reference) -> Sequence[Any]:
    return [module for module in reference.model.modules() if isinstance(module, Qwen3VLMoeTextTopKRouter)]
