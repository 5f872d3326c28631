"""Routed experts under calibration: each quantized with the tokens routed to it, one expert in memory at a time.

Replaces transformers' experts through `ExpertsInterface`, its extension point; the router is transformers' own. While a
layer's inputs are recorded nothing is computed, since nothing in a layer follows its experts; then the weights of one
expert after the other are read, quantized and released, and read back when the layer runs again.

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
from ..weights.blockwise import quantize_nearest
from ..weights.packing import TORCH_DTYPES, Blockwise
from .gptq import Hessian, factor, quantize_gptq
from .results import CalibrationResults

IMPLEMENTATION = "calibrated_experts"  # the name under which transformers finds it
MIN_TOKENS = 128  # an expert that got fewer is quantized without them
GATE_UP, DOWN = "gate_up_proj", "down_proj"


class CalibratedExperts:
    """The experts of one layer.

    Args:
        tensors: the checkpoint's names of the stacks `GATE_UP` [E, 2 * I, H] and `DOWN` [E, H, I].
        parameters: the exporter's names of those that are quantized.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: dict[str, str],
        parameters: dict[str, str],
        packing: Blockwise,
        results: CalibrationResults,
    ) -> None:
        self.checkpoint, self.tensors, self.parameters = checkpoint, tensors, parameters
        self.packing, self.results = packing, results
        # Tokens [N, H] and their experts [N, K]; None once they are quantized, or if none are.
        self.recorded: list[tuple[Tensor, Tensor]] | None = [] if parameters else None

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Tokens [N, H] through their experts; zeros while they are only recorded."""
        out = torch.zeros_like(hidden)
        if self.recorded is not None:
            self.recorded.append((hidden, chosen))
            return out
        for expert in sorted(set(chosen.flatten().tolist())):
            token, choice = torch.where(chosen == expert)
            inner = apply_swiglu(hidden[token] @ self.weight(GATE_UP, expert).T)
            out.index_add_(0, token, inner @ self.weight(DOWN, expert).T * shares[token, choice, None])
        return out

    def weight(self, stack: str, expert: int) -> Tensor:
        """One expert's matrix in float32: dequantized, or the checkpoint's if it is not quantized."""
        _, rows, width = self.checkpoint.tensors[self.tensors[stack]].shape
        if stack in self.parameters:
            bits = self.packing.bits
            return self.results.read(self.parameters[stack], expert * rows, rows, bits, width).dequantized
        return self._read(stack, expert)

    def quantize(self, log: Callable[[str], None], layer: str) -> None:
        """Quantize every expert with the recorded tokens."""
        if self.recorded is None:
            return
        hidden, chosen = (torch.cat(values) for values in zip(*self.recorded, strict=True))
        self.recorded = None
        count = self.checkpoint.tensors[self.tensors[GATE_UP]].shape[0]
        for stack, parameter in self.parameters.items():
            _, rows, width = self.checkpoint.tensors[self.tensors[stack]].shape
            self.results.create(parameter, count * rows, width, self.packing)
        undersampled = 0
        for expert in range(count):
            tokens = hidden[(chosen == expert).any(1)]
            undersampled += len(tokens) < MIN_TOKENS
            self._quantize(GATE_UP, expert, tokens)
            self._quantize(DOWN, expert, apply_swiglu(tokens @ self.weight(GATE_UP, expert).T))
        if undersampled:
            log(
                f"{layer}: {undersampled} of {count} experts got fewer than {MIN_TOKENS} tokens and are quantized "
                "without them, by search"
            )

    def _quantize(self, stack: str, expert: int, inputs: Tensor) -> None:
        if stack not in self.parameters:
            return
        packing, scale_dtype = self.packing, TORCH_DTYPES[self.packing.scale_dtype]
        weight = self._read(stack, expert)
        if len(inputs) < MIN_TOKENS:
            packed = quantize_nearest(weight, packing.bits, packing.block_size, packing.symmetric, True, scale_dtype)
        else:
            hessian = Hessian(weight.shape[1])
            hessian.add(inputs)
            factored = factor(hessian)
            packed = quantize_gptq(weight, factored, packing.bits, packing.block_size, packing.symmetric, scale_dtype)
        self.results.write(self.parameters[stack], expert * len(weight), packed)

    def _read(self, stack: str, expert: int) -> Tensor:
        return self.checkpoint.read(self.tensors[stack], slice(expert, expert + 1))[0].to(torch.float32)


def apply_swiglu(gate_up: Tensor) -> Tensor:
    """[N, 2 * I], gates first, to [N, I]; checkpoints with another activation are refused when they are opened."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _forward(module: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    experts: CalibratedExperts = module.calibrated
    return experts.forward(hidden, chosen, shares)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
