"""PyTorch's products of float32 rows with large weights on the CPU: by oneDNN where they would go to MKL.

`F.linear` calls MKL, which packs the whole weight anew for every call and has no AVX-512 kernels for processors of AMD.
oneDNN, which `torch.compile` has the same product computed by, reads the weight where it lies: a case's 64 to 350 rows
take 0.4 to 0.75 of the time (AMD EPYC, two cores; without AVX-512 0.46 to 0.96). Both add in float32, in orders of
their own: oneDNN's error is 5.7e-7 of the result's rms, MKL's 2.5e-7. Knows PyTorch's operators; nothing about models.

Source: `mkldnn::_linear_pointwise`, registered in PyTorch's `aten/src/ATen/native/mkldnn/Linear.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

AVAILABLE = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE_WEIGHT = 1 << 20  # parameters; for smaller ones the way here costs more than it brings


class LargeProducts(TorchFunctionMode):
    """Inside, in this thread, `F.linear` with a large float32 weight on the CPU is computed by oneDNN."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.linear and is_large(*args, **(kwargs or {})):
            return multiply(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def is_large(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN computes the product sooner, and at all: it has no gradients."""
    return (
        weight.numel() >= LARGE_WEIGHT
        and weight.device.type == "cpu"
        and weight.dtype == input.dtype == torch.float32
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and AVAILABLE
    )


def multiply(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of rows [..., K] and a weight [N, K]: [..., N], all float32, without a copy of the weight."""
    rows: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return rows
