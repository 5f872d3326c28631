"""Routed experts under calibration: each quantized from the tokens that are sent to it, one expert in memory at a time.

Stands in for transformers' experts by `ExpertsInterface`, its extension point; the router is transformers' own. While a
layer is watched the tokens are noted and nothing is computed, since nothing of a layer comes after its experts; then
the weights of one expert after the other are read, quantized and forgotten, and read back when the layer runs again.

Legend: N tokens, H hidden size, E experts, K of them chosen per token, I their inner size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..checkpoint import Checkpoint
from ..weights.blockwise import quantize_rows as quantize_by_search
from ..weights.packing import TORCH, Blockwise
from .gptq import Hessian, factor, quantize_rows
from .results import Results

WATCHED = "watched_experts"
FEWEST = 128  # tokens; an expert that got fewer is quantized without looking at them
PARTS = ("gate_up_proj", "down_proj")


class Experts:
    """The experts of one layer.

    Args:
        tensors: of the checkpoint, by part: [E, 2 * I, H] and [E, H, I].
        parameters: the exporter's names of the parts that are quantized.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: dict[str, str],
        parameters: dict[str, str],
        packing: Blockwise,
        results: Results,
    ) -> None:
        self.checkpoint, self.tensors, self.parameters = checkpoint, tensors, parameters
        self.packing, self.results = packing, results
        self.noted: list[tuple[Tensor, Tensor]] | None = []  # tokens [N, H] and their experts [N, K], while watched

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Tokens [N, H] through their experts; zeros while they are only noted."""
        out = torch.zeros_like(hidden)
        if self.noted is not None:
            self.noted.append((hidden, chosen))
            return out
        for expert in sorted(set(chosen.flatten().tolist())):
            token, place = torch.where(chosen == expert)
            inner = activated(hidden[token] @ self.weight(PARTS[0], expert).T)
            out.index_add_(0, token, inner @ self.weight(PARTS[1], expert).T * shares[token, place, None])
        return out

    def weight(self, part: str, expert: int) -> Tensor:
        """One expert's matrix in float32: what its integers stand for, or the checkpoint's if it is kept."""
        _, rows, width = self.checkpoint.tensors[self.tensors[part]].shape
        if part in self.parameters:
            bits = self.packing.bits
            return self.results.read(self.parameters[part], expert * rows, rows, bits, width).restored
        return self.checkpoint.read(self.tensors[part], slice(expert, expert + 1))[0].to(torch.float32)

    def quantize(self, log: Callable[[str], None], name: str) -> None:
        """Quantize every expert from what was noted."""
        assert self.noted is not None
        hidden, chosen = (torch.cat(values) for values in zip(*self.noted, strict=True))
        self.noted = None
        count = self.checkpoint.tensors[self.tensors[PARTS[0]]].shape[0]
        for part, parameter in self.parameters.items():
            _, rows, width = self.checkpoint.tensors[self.tensors[part]].shape
            self.results.create(parameter, count * rows, width, self.packing)
        few = []
        for expert in range(count):
            given = hidden[(chosen == expert).any(1)]
            if len(given) < FEWEST:
                few.append(expert)
            self._quantize(PARTS[0], expert, given)
            self._quantize(PARTS[1], expert, activated(given @ self.weight(PARTS[0], expert).T))
        if few:
            log(f"{name}: {len(few)} of {count} experts got fewer than {FEWEST} tokens: their scales are searched only")

    def _quantize(self, part: str, expert: int, inputs: Tensor) -> None:
        if part not in self.parameters:
            return
        how, dtype = self.packing, TORCH[self.packing.scales]
        weight = self.checkpoint.read(self.tensors[part], slice(expert, expert + 1))[0].to(torch.float32)
        if len(inputs) < FEWEST:
            blocks = quantize_by_search(weight, how.bits, how.block_size, how.symmetric, True, dtype)
        else:
            hessian = Hessian(weight.shape[1])
            hessian.add(inputs)
            blocks = quantize_rows(weight, factor(hessian), how.bits, how.block_size, how.symmetric, dtype)
        self.results.write(self.parameters[part], expert * len(weight), blocks)


def activated(both: Tensor) -> Tensor:
    """[N, 2 * I], gates first, to [N, I]; checkpoints with another activation are refused when they are opened."""
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def _forward(module: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    experts: Experts = module.calibrated
    return experts.forward(hidden, chosen, shares)


ALL_EXPERTS_FUNCTIONS.register(WATCHED, _forward)
