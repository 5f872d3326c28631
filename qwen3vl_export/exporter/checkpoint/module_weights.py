"""Modules whose weights come and go: values put into their places, and dropped again to the meta device.

Calibration and the proof both hold one layer in memory at a time and share this. What the values are, each reads in a
way of its own: calibration through `Checkpoint`, the proof through transformers' loader, which checks the former.
"""

from __future__ import annotations

from torch import Tensor, nn


def set_weight(module: nn.Module, name: str, value: Tensor) -> None:
    """Make a tensor the parameter of this name (`self_attn.q_proj.weight`), without gradients and without a copy."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value.detach(), requires_grad=False))


def unload_weights(module: nn.Module, recurse: bool = True) -> None:
    """Drop a module's weights: its parameters are on the meta device again."""
    for name, parameter in list(module.named_parameters(recurse=recurse)):
        set_weight(module, name, parameter.to("meta"))
