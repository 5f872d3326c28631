"""A PEFT adapter's `adapter_config.json`: read, and refused if it asks for more than plain LoRA.

Source: PEFT, `LoraConfig`. Knows nothing about tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, first_line
from ....hub import ADAPTER_CONFIG
from ....json_form import from_settings

CONFIG = ADAPTER_CONFIG
MERGE_IT = "Merge it with PEFT: merge_and_unload(), save_pretrained(), and build the result"
# Initializations that leave the base as it is. The others change it, so that a part of it is not in the adapter.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# What only training reads, and `fan_in_fan_out`, which PEFT drops for every kind of module that Qwen3-VL has.
WITHOUT_EFFECT = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "auto_mapping", "runtime_config", "megatron_core"),
    *("lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "qalora_group_size"),
}


@dataclass(frozen=True)
class AdapterConfig:
    """The settings that say which modules an adapter changes, and by how much; the names are PEFT's."""

    base_model_name_or_path: str = ""
    revision: str | None = None
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_modules: str | tuple[str, ...] | None = None
    target_parameters: tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] = ()
    layers_pattern: str | tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    bias: str = "none"
    lora_bias: bool = False
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str = True

    def rank(self, *names: str) -> int:
        """The rank of a target, by its names: that of the first pattern that matches one, else the default."""
        return self.rank_pattern.get(_pattern_of(self.rank_pattern, names), self.r)

    def scale(self, *names: str) -> float:
        """The factor of B @ A: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, names), self.lora_alpha)
        rank = self.rank(*names)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_adapter_config(root: Path) -> AdapterConfig:
    """The settings of an adapter's directory.

    Raises:
        CheckpointError: there are none, or the adapter is not plain LoRA.
    """
    path = root / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{root}: no {CONFIG} here", "Point to the directory of a PEFT adapter")
    try:
        raw = json.loads(path.read_text("utf-8-sig"))
        peft_type = raw.get("peft_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a JSON object ({first_line(error)})", "Download the adapter again"
        ) from error
    if peft_type != "LORA":
        raise CheckpointError(f"{path}: peft_type is {peft_type!r}, only 'LORA' is merged", MERGE_IT)
    names = {entry.name for entry in fields(AdapterConfig)}
    for key, value in raw.items():
        if value and key not in names | WITHOUT_EFFECT:
            raise CheckpointError(f"{path}: {key} is set, and only plain LoRA is merged", MERGE_IT)
    try:
        config = from_settings(AdapterConfig, {key: value for key, value in raw.items() if value is not None})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", "Take the file that PEFT saved") from error
    if config.init_lora_weights not in PLAIN_INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {config.init_lora_weights!r}, which changed the base that it was trained on",
            "Save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge it with PEFT",
        )
    _check(path, config)
    return config


def _check(path: Path, config: AdapterConfig) -> None:
    """Refuse numbers and expressions that cannot be used."""
    ranks, alphas = [config.r, *config.rank_pattern.values()], [config.lora_alpha, *config.alpha_pattern.values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise CheckpointError(f"{path}: a rank is not a positive number", "Take the file that PEFT saved")
    if not all(isinstance(alpha, (int, float)) for alpha in alphas):
        raise CheckpointError(f"{path}: an alpha is not a number", "Take the file that PEFT saved")
    layers = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    inner = [*config.rank_pattern, *config.alpha_pattern, *config.modules_to_save, *layers]  # parts of another one
    whole = [text for text in (config.target_modules, config.exclude_modules) if isinstance(text, str)]
    for expression, form in [*((text, f".*({text})") for text in inner), *((text, text) for text in whole)]:
        try:
            re.compile(form)
        except re.error as error:
            raise CheckpointError(
                f"{path}: {expression!r} is not a regular expression ({error})", "Take the file that PEFT saved"
            ) from error


def _pattern_of(patterns: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first pattern that matches the end of a name, from a dot on; "" if there is none."""
    matching = (key for name in names for key in patterns if re.match(rf"(.*\.)?({key})$", name))
    return next(matching, "")
