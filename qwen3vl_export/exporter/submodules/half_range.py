"""Activations beyond float16's range: MLPs whose hidden values reach 2,096,128, and a guard for what exceeds even that.

The hidden values of trained MLPs exceed 65,504, the largest float16: after `linear_fc1` in towers, before `down_proj`
in decoders. So products run on inputs divided by `HEADROOM`, and their results are multiplied by it in float32, where
activation functions and the product of gate and up are computed. A power of two costs no digit, and weights stay as the
checkpoint has them. transformers' MLPs stay unchanged but for their linear layers.

Legend: K inputs of a product, N its outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contract import OUT_OF_RANGE
from .geometry import IMPOSSIBLE, guard_rows

HEADROOM = 32.0  # 65,504 * 32 = 2,096,128; quotients of at least 0.002 keep all of float16's digits


class ScaledLinear(nn.Module):
    """A linear layer in float16 with results of up to `HEADROOM` times its range.

    Args:
        linear: its weight [N, K] and bias [N].
        dtype: of the result; float16 cannot hold more than its range, but every sum on the way to it.
        divide: divide the input. Otherwise it arrives divided.
        multiply: multiply the result. Otherwise it leaves divided, for a product in which it is one factor.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, divide: bool = True, multiply: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.dtype = dtype
        self.divide, self.multiply = divide, multiply

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] of any floating dtype -> [..., N]."""
        if self.divide:
            x = x * (1 / HEADROOM)
        half = self.weight.dtype
        bias = None
        if self.bias is not None:  # divided in float32, where onnxruntime can fold it into a constant
            bias = (self.bias.to(torch.float32) * (1 / HEADROOM)).to(half)
        y = F.linear(x.to(half), self.weight, bias).to(self.dtype)
        return y * HEADROOM if self.multiply else y


def widen_mlps(model: nn.Module) -> None:
    """Scale the linear layers of every MLP in a tower or decoder whose weights are float16; their names stay.

    Experts are left: `lowering/experts.py` computes them in float32.
    """
    wide, narrow = torch.float32, torch.float16
    for module in list(model.modules()):
        match dict(module.named_children()):
            case {"linear_fc1": nn.Linear() as first, "linear_fc2": nn.Linear() as second}:  # blocks and mergers
                module.linear_fc1, module.linear_fc2 = ScaledLinear(first, wide), ScaledLinear(second, narrow)
            case {"gate_proj": nn.Linear() as gate, "up_proj": nn.Linear() as up, "down_proj": nn.Linear() as down}:
                module.gate_proj, module.up_proj = ScaledLinear(gate, wide), ScaledLinear(up, wide, multiply=False)
                module.down_proj = ScaledLinear(down, narrow, divide=False)


def guard_range(x: Tensor, values: Tensor) -> Tensor:
    """`x` [R, ..., C] unchanged, or a failure inside the graph where float16 `values` are infinite or not numbers.

    Other dtypes are not checked: float32 has the range of the model's own bfloat16.
    """
    if values.dtype != torch.float16:
        return x
    total = values.to(torch.float32).sum()  # finite if all are: float32 holds 2^111 times float16's range
    bad = torch.isnan(total * 0).to(torch.int64)
    return guard_rows(x, bad * IMPOSSIBLE + x.shape[0], OUT_OF_RANGE)
