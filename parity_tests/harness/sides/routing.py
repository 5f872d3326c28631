"""Routing in a mixture of experts: which experts an artifact chose, and PyTorch's logits with the same choices.

A router takes the best K of its logits. Where the K-th and the next are closer than the compute precision resolves,
either choice is as right as the other, and everything after it differs by a whole expert. The rule is that of near-tied
tokens: PyTorch is forced to the artifact's experts, layer by layer, and every choice it would have made differently
must be a near-tie by its own router logits there; the artifact is then compared with these logits, within the same
limits. If a single choice is not a near-tie, the artifact is compared with PyTorch's logits on its own routes.

Knows routers by transformers' class; judges nothing.
"""

from __future__ import annotations

import threading
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

from qwen3vl_export.contract import (
    ATTENTION_MASK,
    DECODER,
    INPUTS_EMBEDS,
    NUM_LOGITS_TO_KEEP,
    POSITION_IDS,
    past_name,
    present_name,
)
from qwen3vl_export.runtime.arrays import Floats, Ints

from .artifact.float_activations import change_of
from .artifact.probe import open_reader
from .bench import Bench, DecoderCall
from .pytorch.forward import to_numpy
from .pytorch.inputs import array_key
from .pytorch.reference import Reference

SETTING = "routing_margin"
Choices = list[Ints]  # [B, S, K] for each layer of experts, in the order of the tokens


@dataclass(frozen=True)
class RoutedLogits:
    """PyTorch's logits to compare with.

    Attributes:
        logits: [B, S, V], on the artifact's routes if every choice that differs is a near-tie, else on PyTorch's.
        ties: number of tokens and layers at which the choices differ.
        gap: the largest difference of PyTorch's router logits between an expert it chose and the one chosen instead, in
            units of that router's largest logit.
        explained: whether all of them are near-ties.
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


@dataclass(frozen=True)
class ForcedRoutes:
    """PyTorch's decoder with its L routers forced: its logits, and what each router computed and would have chosen."""

    logits: Floats  # [B, N, V], of the last N tokens
    router_logits: Floats  # [L, B * S, E]
    preferred: Ints  # [L, B * S, K]


def compute_routed(reference: Reference, choices: Choices, call: DecoderCall, count: int) -> ForcedRoutes:
    with force_routes(reference, choices) as records:
        logits = reference.run_decoder(*call, count)
    values, preferred = zip(*records, strict=True)
    return ForcedRoutes(logits, np.stack(values), np.stack(preferred))


def is_compared(bench: Bench) -> bool:
    """Whether the artifact has experts and its profile says when routing is a near-tie."""
    return bench.artifact.manifest.facts.model_type == "qwen3_vl_moe" and SETTING in bench.profile.settings


def follow_routes(bench: Bench, expected: Floats, choices: Choices, call: DecoderCall) -> RoutedLogits:
    """What to compare an artifact's logits with.

    Args:
        expected: PyTorch's logits [B, S, V], or the last of them.
        choices: the artifact's, see `record_choices`.
        call: the inputs of PyTorch's decoder that gave `expected`.
    """
    seen, count = call[1].astype(bool), expected.shape[1]
    key = ("forced routes", array_key(*call, *choices), count)
    routed = bench.reference.remember(
        key,
        ForcedRoutes,
        lambda: compute_routed(bench.reference, choices, call, count),
        waiting_bytes=2 * call[0].nbytes,
    )
    gaps = np.concatenate(
        [
            routing_gaps(
                candidate[seen], preferred.reshape(candidate.shape)[seen], values.reshape(*seen.shape, -1)[seen]
            )
            for candidate, values, preferred in zip(choices, routed.router_logits, routed.preferred, strict=True)
        ]
    )
    if not gaps.size:
        return RoutedLogits(expected)
    gap = float(gaps.max())
    explained = gap <= bench.profile.settings[SETTING]
    return RoutedLogits(routed.logits if explained else expected, len(gaps), gap, explained)


def routing_gaps(candidate: Ints, reference: Ints, logits: Floats) -> NDArray[np.float64]:
    """How much PyTorch prefers its own choice at each token at which the choices [N, K] differ as sets.

    The largest of the router logits [N, E] of an expert that only PyTorch chose, less the smallest of one that only the
    artifact chose, in units of the router's largest logit at any token: [N'].
    """
    gaps, scale = [], float(np.abs(logits).max(initial=0.0))
    for chosen, preferred, values in zip(
        candidate.tolist(), reference.tolist(), logits.astype(np.float64), strict=True
    ):
        missed, extra = set(preferred) - set(chosen), set(chosen) - set(preferred)
        if missed:
            gaps.append(max(values[list(missed)]) - min(values[list(extra)]))
    return np.array(gaps, np.float64) / max(scale, float(np.finfo(np.float32).tiny))


def record_choices(bench: Bench, calls: Sequence[DecoderCall]) -> Choices:
    """The experts that the artifact's decoder chooses in consecutive calls, each continuing the cache."""
    key = ("choices", array_key(*(array for call in calls for array in call)))
    held = bench.held_bytes(calls[-1][1])
    compute = bench.timed(lambda: np.stack(run_choices(bench, calls)))
    return list(bench.results.recall(key, np.ndarray, compute, shared=True, held=held))


def run_choices(bench: Bench, calls: Iterable[DecoderCall]) -> Choices:
    """`record_choices`, computed."""
    path = bench.artifact.graph_path(DECODER)
    graph = onnx.load(path, load_external_data=False).graph
    facts = bench.artifact.manifest.facts
    indices = [node.output[1] for node in graph.node if node.op_type == "TopK"]
    cached = [(index, part) for index in range(facts.num_hidden_layers) for part in ("key", "value")]
    names = [*indices, *(present_name(*entry) for entry in cached)]
    sessions = bench.runtime.sessions
    run = open_reader(path, names, sessions.threads, change_of(sessions), sessions.opener)
    past: dict[str, NDArray[Any]] = {}
    by_call: list[Choices] = []
    for rows, attention_mask, position_ids in calls:
        if not past:
            empty = np.zeros((len(rows), facts.num_key_value_heads, 0, facts.head_dim), np.float32)
            past = {past_name(*entry): empty for entry in cached}
        feeds = {INPUTS_EMBEDS: rows, ATTENTION_MASK: attention_mask, POSITION_IDS: position_ids}
        values = run({**feeds, **past, NUM_LOGITS_TO_KEEP: np.array(0)})
        past = {past_name(*entry): value for entry, value in zip(cached, values[len(indices) :], strict=True)}
        experts = [value.reshape(*rows.shape[:2], -1) for value in values[: len(indices)]]
        by_call.append([restore_token_order(bench, choices, attention_mask) for choices in experts])
    return [np.concatenate(layer, axis=1) for layer in zip(*by_call, strict=True)]


def restore_token_order(bench: Bench, choices: Ints, attention_mask: Ints) -> Ints:
    """Choices [B, S, K] in the order of the tokens: the ort graph moves each row's tokens to its start."""
    if bench.artifact.manifest.recipe["target"] == "portable":
        return choices
    first = attention_mask[:, -choices.shape[1] :].argmax(1)
    return np.stack([np.roll(row, shift, 0) for row, shift in zip(choices, first, strict=True)])


@contextmanager
def force_routes(reference: Reference, choices: Choices) -> Iterator[list[tuple[Floats, Ints]]]:
    """Inside, in this thread, PyTorch's routers choose these experts, with weights from their own logits.

    Yields one record per router, in the order of the layers: its logits [B * S, E] and the experts [B * S, K] it would
    have chosen.
    """
    records: list[tuple[Floats, Ints]] = []
    thread = threading.get_ident()

    def force(forced: Ints) -> Any:
        def hook(module: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            if threading.get_ident() != thread:
                return output
            logits, _, preferred = output
            records.append((to_numpy(logits), to_numpy(preferred)))
            experts = torch.from_numpy(forced.reshape(-1, forced.shape[-1]).astype(np.int64)).to(logits.device)
            weights = logits.softmax(-1).gather(1, experts)
            return logits, weights / weights.sum(-1, keepdim=True), experts

        return hook

    with ExitStack() as stack:
        for router, forced in zip(routers(reference), choices, strict=True):
            stack.callback(router.register_forward_hook(force(forced)).remove)
        yield records


def routers(reference: Reference) -> Sequence[Any]:
    return [module for module in reference.model.modules() if isinstance(module, Qwen3VLMoeTextTopKRouter)]
