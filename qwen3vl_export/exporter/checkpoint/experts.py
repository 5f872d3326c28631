"""The experts of a mixture, whichever way round their matrices are stored, stacked or one tensor each. Knows names and
shapes; nothing about files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from transformers import Qwen3VLMoeConfig

from ...errors import CheckpointError
from .config import Config
from .tensors import StackedReader, TensorReader, TransposedReader

EXPERT = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<index>\d+)\.(?P<matrix>gate|up|down)_proj\.weight")
STACKS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


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


def stack_experts(tensors: Mapping[str, TensorReader], config: Config) -> dict[str, TensorReader]:
    """The tensors, with experts that are stored one by one stacked as transformers' modules hold them.

    `mlp.experts.3.gate_proj.weight` [I, H], `up_proj.weight` [I, H] and `down_proj.weight` [H, I] become rows 3 of
    `mlp.experts.gate_up_proj` [E, 2 * I, H] and `mlp.experts.down_proj` [E, H, I].
    Source: transformers `conversion_mapping`, "qwen2_moe", which holds for Qwen3's mixtures too.

    Raises:
        CheckpointError: a matrix of an expert is missing, or is not of the others' shape.
    """
    if not isinstance(config, Qwen3VLMoeConfig):
        return dict(tensors)
    stacked: dict[str, TensorReader] = {}
    experts: defaultdict[str, dict[tuple[int, str], TensorReader]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            experts[match["experts"]][int(match["index"]), match["matrix"]] = tensor
        else:
            stacked[name] = tensor
    for module, matrices in experts.items():
        count = 1 + max(index for index, _ in matrices)
        if count > len(matrices):
            count = next(index for index in range(count) if (index, "down") not in matrices) + 1
        for stack, parts in STACKS.items():
            readers = [[_expert(module, index, part, matrices) for part in parts] for index in range(count)]
            stacked[f"{module}.{stack}"] = StackedReader(readers)
    return stacked


def _expert(module: str, index: int, matrix: str, matrices: Mapping[tuple[int, str], TensorReader]) -> TensorReader:
    name = f"{module}.{index}.{matrix}_proj.weight"
    reader, first = matrices.get((index, matrix)), next(iter(matrices.values()))
    if reader is None:
        raise CheckpointError(f"{first.file}: tensor {name} is missing beside the other experts", "Download it again")
    shape = matrices.get((0, matrix), reader).shape
    if len(shape) != 2 or reader.shape != shape:
        raise CheckpointError(
            f"{reader.file}: tensor {name} is {list(reader.shape)}, that of expert 0 is {list(shape)}",
            "Download it again",
        )
    return reader
