"""The experts of a mixture, whichever way round their matrices are stored. Knows shapes; nothing about files."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Qwen3VLMoeConfig

from .config import Config
from .tensors import TensorReader, TransposedReader


def orient_experts(tensors: Mapping[str, TensorReader], config: Config) -> dict[str, TensorReader]:
    """The tensors, with stacked experts as transformers' modules hold them.

    The published files hold experts as [E, H, 2 * I] and [E, I, H]; transformers 5 holds and saves them as
    `torch.nn.Linear` would, [E, 2 * I, H] and [E, H, I]. Both are read. They are distinguished by shape; a shape that
    fits both counts as the latter, all as in transformers' `from_pretrained`.
    Source: transformers `conversion_mapping`, "qwen3_vl_moe".
    """
    if not isinstance(config, Qwen3VLMoeConfig):
        return dict(tensors)
    hidden, inner = config.text_config.hidden_size, config.text_config.moe_intermediate_size
    matrices = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}

    def orient(name: str, tensor: TensorReader) -> TensorReader:
        module, _, parameter = name.rpartition(".")
        matrix = matrices.get(parameter) if module.endswith(".mlp.experts") else None
        return TransposedReader(tensor) if matrix and tensor.shape[1:] == matrix[::-1] != matrix else tensor

    return {name: orient(name, tensor) for name, tensor in tensors.items()}
