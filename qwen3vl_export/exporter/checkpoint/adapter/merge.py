"""An adapter's tensors, each merged into the parameter it belongs to.

What an adapter changes follows from the names of its tensors, how much from its settings. A tensor that belongs to no
target of the model, and a target without tensors, are refused. Source: PEFT, `merge_and_unload`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ....errors import CheckpointError
from ..safetensors_file import StoredTensor
from ..tensors import StoredReader, TensorReader
from .config import CONFIG, MERGE_IT, AdapterConfig
from .keys import BIAS, FACTOR, TABLE_FACTOR, TOKENS, WHOLE, AdapterTensor, parse_key
from .readers import (
    AdaptedReader,
    CastReader,
    Delta,
    ExpertsDelta,
    MatrixDelta,
    ReplacedRowsReader,
    TableDelta,
    VectorDelta,
)
from .targets import HEAD, TABLE, Modules, is_saved_whole, is_target, target_parameters, targets, token_indices

ADAPTABLE = (nn.Linear, nn.Conv3d, nn.Embedding)  # PEFT adapts other modules of Qwen3-VL by `target_parameters` alone
CHECK_IT = "Check that the adapter belongs to this checkpoint"


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors, by name.

    Attributes:
        tied: whether the output head is the token table.
        says_tied: whether the config says so, which is what PEFT goes by; after a merge it says what is.
    """

    tensors: dict[str, TensorReader]
    tied: bool
    says_tied: bool


def merge(
    file: Path, config: AdapterConfig, stored: Mapping[str, StoredTensor], weights: Weights, modules: Modules
) -> Weights:
    """The weights with an adapter merged in.

    An adapter that changes the token table or the output head, and not both alike, unties them: what was trained is a
    model in which only one of them is adapted. (PEFT's merge of tied weights changes both, and warns.)

    Args:
        file: the adapter's tensors, for errors.
        stored: the adapter's tensors, by name.
        modules: those of transformers' model.

    Raises:
        CheckpointError: a tensor belongs to no target or has the wrong shape, or a target has no tensors.
    """
    merging = _Merge(file, config, weights, modules)
    entries = [merging.parse(key, tensor) for key, tensor in stored.items()]
    if weights.tied and config.ensure_weight_tying and any(entry.module == TABLE for entry in entries):
        entries = [entry for entry in entries if entry.module != HEAD or entry.kind != WHOLE]  # the table again
    merging.check_targets(entries)
    base = [entry for entry in entries if entry.kind == WHOLE and not is_saved_whole(config, entry.module)]
    for entry in base:
        merging.replace_base(entry)
    entries = [entry for entry in entries if entry not in base]
    merging.untie(entries)
    for entry in entries:
        if entry.kind == TOKENS:
            merging.replace_rows(entry)
        elif entry.kind == WHOLE:
            merging.replace(f"{entry.module}.{entry.part}", entry)
    products: dict[tuple[str, int], dict[str, AdapterTensor]] = {}
    for entry in entries:
        if entry.kind in (FACTOR, TABLE_FACTOR):
            products.setdefault((entry.module, entry.depth), {})[entry.part] = entry
    for parts in products.values():
        merging.add_product(parts)
    if merging.tied and f"{HEAD}.weight" in merging.tensors:
        merging.tensors[f"{HEAD}.weight"] = merging.tensors[f"{TABLE}.weight"]
    return Weights(merging.tensors, merging.tied, says_tied=merging.tied)


class _Merge:
    """The state of `merge`: the tensors so far."""

    def __init__(self, file: Path, config: AdapterConfig, weights: Weights, modules: Modules) -> None:
        self.file, self.config, self.modules = file, config, modules
        self.tensors, self.tied, self.says_tied = dict(weights.tensors), weights.tied, weights.says_tied

    def parse(self, key: str, stored: StoredTensor) -> AdapterTensor:
        """The module that a tensor belongs to, and its part."""
        entry = parse_key(key, stored, self.modules)
        if entry is None:
            raise CheckpointError(f"{self.file}: tensor {key} belongs to no module of this model", CHECK_IT)
        return entry

    def check_targets(self, entries: list[AdapterTensor]) -> None:
        """Refuse targets that cannot be adapted or have no tensors, and tensors without a target."""
        present = {(entry.module, entry.depth, entry.part) for entry in entries}
        for name in targets(self.config, self.modules):
            if is_target(self.config, name, self.modules) and not isinstance(self.modules[name], ADAPTABLE):
                what = f"{CONFIG} targets {name}, which is neither a linear layer nor a convolution nor a table"
                raise CheckpointError(f"{self.file.parent}: {what}", CHECK_IT)
            is_alias = self.says_tied and name == HEAD and token_indices(self.config, TABLE)
            missing = [part for part in self._parts(name) if (name, *part) not in present and not is_alias]
            if missing:
                raise CheckpointError(f"{self.file}: has no {missing[0][1]} for {name}, which {CONFIG} names", CHECK_IT)
        for entry in entries:
            if not self._belongs(entry):
                raise CheckpointError(f"{self.file}: {CONFIG} names no target for tensor {entry.key}", CHECK_IT)

    def untie(self, entries: list[AdapterTensor]) -> None:
        """Give the output head a table of its own if it is tied to one and either is adapted alone."""
        ends = [entry for entry in entries if entry.module in (HEAD, TABLE)]
        together = [WHOLE, TOKENS] if self.config.ensure_weight_tying else [TOKENS]
        is_alone = any(entry.kind not in together or entry.module == HEAD for entry in ends)
        if not self.tied or not is_alone:
            return
        if any(entry.kind == TOKENS for entry in ends):
            raise CheckpointError(
                f"{self.file}: adapts tokens of a tied table, and the table or its head too", MERGE_IT
            )
        self.tensors[f"{HEAD}.weight"] = self.tensors[f"{TABLE}.weight"]
        self.tied = False

    def replace_base(self, entry: AdapterTensor) -> None:
        """A parameter of the base itself: a bias, or a table that was saved with its adapter."""
        module = TABLE if self.tied and entry.module == HEAD else entry.module
        self.replace(f"{module}.{entry.part}", entry)

    def replace(self, name: str, entry: AdapterTensor) -> None:
        """A whole parameter, in the dtype of the checkpoint's."""
        base = self._base(name)
        self._check_shape(entry, base.shape)
        stored = StoredReader(entry.stored)
        self.tensors[name] = stored if stored.dtype == base.dtype else CastReader(stored, base.dtype)

    def replace_rows(self, entry: AdapterTensor) -> None:
        """Some rows of a table, and the same of a head that has values of its own although config.json ties it."""
        self._replace_rows(f"{entry.module}.weight", entry)
        if entry.module == TABLE and self.says_tied and not self.tied:
            self._replace_rows(f"{HEAD}.weight", entry)

    def _replace_rows(self, name: str, entry: AdapterTensor) -> None:
        base, indices = self._base(name), tuple(token_indices(self.config, entry.module))
        self._check_shape(entry, (len(indices), *base.shape[1:]))
        if wrong := [index for index in indices if not 0 <= index < base.shape[0]]:
            raise CheckpointError(f"{self.file}: {CONFIG} names token {wrong[0]}, {name} has no such row", CHECK_IT)
        self.tensors[name] = ReplacedRowsReader(base, indices, entry.stored)

    def add_product(self, parts: Mapping[str, AdapterTensor]) -> None:
        """The product of a target's factors, and the bias of the second one."""
        entry = next(iter(parts.values()))
        parameters = target_parameters(self.config, entry.module, self.modules)
        parameter = parameters[-1 - entry.depth] if parameters else "weight"
        name = f"{entry.module}.{parameter}"
        names = (name, f"{entry.spelling}.{parameter}") if parameters else (entry.module, entry.spelling)
        scale = self.config.scale(*names)
        delta = self._delta(parts, name, self.config.rank(*names), scale, bool(parameters))
        is_rounded = bool(parameters) or entry.kind == TABLE_FACTOR
        self.tensors[name] = AdaptedReader(self._base(name), delta, is_rounded)
        if BIAS in parts:
            name = f"{entry.module}.bias"
            base = self._base(name)
            self._check_shape(parts[BIAS], base.shape)
            self.tensors[name] = AdaptedReader(base, VectorDelta(parts[BIAS].stored, scale))

    def _delta(self, parts: Mapping[str, AdapterTensor], name: str, rank: int, scale: float, is_direct: bool) -> Delta:
        """The product of two factors.

        Args:
            is_direct: the parameter is one of `target_parameters`.
        """
        shape = self._base(name).shape
        if "lora_embedding_A" in parts:
            a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
            self._check_shape(a, (rank, shape[0]))
            self._check_shape(b, (shape[1], rank))
            return TableDelta(a.stored, b.stored, scale)
        a, b = parts["lora_A"], parts["lora_B"]
        if is_direct and len(shape) == 3:
            experts, outputs, inputs = shape
            self._check_shape(a, (rank * experts, inputs))
            self._check_shape(b, (outputs, rank * experts))
            return ExpertsDelta(a.stored, b.stored, scale, rank)
        self._check_shape(a, (rank, *shape[1:]))
        self._check_shape(b, (shape[0], rank, *(1 for _ in shape[2:])))
        return MatrixDelta(a.stored, b.stored, scale)

    def _belongs(self, entry: AdapterTensor) -> bool:
        """Whether the model and the settings have a place for a tensor."""
        module = self.modules[entry.module]
        if entry.kind == WHOLE:
            return entry.part in dict(module.named_parameters(recurse=False))
        if entry.kind == TOKENS:
            return bool(token_indices(self.config, entry.module))
        parameters = target_parameters(self.config, entry.module, self.modules)
        if parameters:
            return entry.kind == FACTOR and entry.part != BIAS and entry.depth < len(parameters)
        names = [entry.module, entry.spelling]
        if entry.module == HEAD and self.says_tied and self.config.ensure_weight_tying:
            names.append(TABLE)
        is_named = any(is_target(self.config, name, self.modules) for name in names)
        return is_named and isinstance(module, nn.Embedding) == (entry.kind == TABLE_FACTOR) and entry.depth == 0

    def _parts(self, name: str) -> list[tuple[int, str]]:
        """(depth, part) of every tensor that a target must have."""
        module = self.modules[name]
        if is_saved_whole(self.config, name):
            return [(0, parameter) for parameter, _ in module.named_parameters(recurse=False)]
        parameters = target_parameters(self.config, name, self.modules)
        if parameters:
            return [(depth, part) for depth in range(len(parameters)) for part in ("lora_A", "lora_B")]
        if token_indices(self.config, name) and not is_target(self.config, name, self.modules):
            return [(0, "trainable_tokens_delta")]
        if isinstance(module, nn.Embedding):
            return [(0, "lora_embedding_A"), (0, "lora_embedding_B")]
        return [(0, "lora_A"), (0, "lora_B"), *([(0, BIAS)] if self.config.lora_bias else [])]

    def _base(self, name: str) -> TensorReader:
        if name not in self.tensors:
            raise CheckpointError(f"{self.file}: adapts {name}, which the checkpoint does not have", CHECK_IT)
        return self.tensors[name]

    def _check_shape(self, entry: AdapterTensor, expected: tuple[int, ...]) -> None:
        if entry.stored.shape != expected:
            raise CheckpointError(
                f"{self.file}: tensor {entry.key} is {list(entry.stored.shape)}, the model and {CONFIG} ask for "
                f"{list(expected)}",
                CHECK_IT,
            )
