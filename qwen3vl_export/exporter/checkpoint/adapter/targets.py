"""Which modules of a model an adapter's settings name, by PEFT's rules.

Source: PEFT, `check_target_module_exists`, `_inject_parameters`, `_set_trainable`. Knows nothing about tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from ..config import Config
from .config import AdapterConfig

HEAD = "lm_head"
TABLE = "model.language_model.embed_tokens"
ALL_LINEAR = "all-linear"
PREFIXES = ("", "model.", "model.language_model.")  # what older forms of a module's name leave out

Modules = Mapping[str, nn.Module]


def modules_of(config: Config) -> Modules:
    """Every module of transformers' model, by name, without weights."""
    moe = isinstance(config, Qwen3VLMoeConfig)
    model = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    with torch.device("meta"):
        return dict(model(config).named_modules())


def current_name(name: str, modules: Modules) -> str | None:
    """A module's name in transformers' model, also for the names of older versions: `model.layers.0.mlp`, `visual`."""
    spellings = (prefix + spelling for spelling in (name, name.removeprefix("model.")) for prefix in PREFIXES)
    return next((spelling for spelling in spellings if spelling in modules), None)


def is_target(config: AdapterConfig, name: str, modules: Modules) -> bool:
    """Whether `target_modules` names a module."""
    targets = config.target_modules
    if targets is None or _is_excluded(config, name):
        return False
    if isinstance(targets, str):
        if targets.lower() == ALL_LINEAR:
            return name != HEAD and isinstance(modules.get(name), nn.Linear)
        return re.fullmatch(targets, name) is not None
    if name in targets:
        return True
    return _ends_with(name, targets) and _is_chosen_layer(config, name)


def target_parameters(config: AdapterConfig, name: str, modules: Modules) -> list[str]:
    """The parameters of a module that `target_parameters` names, in the module's order."""
    parameters = [parameter for parameter, _ in modules[name].named_parameters(recurse=False)]
    return [key for key in parameters if _ends_with(f"{name}.{key}", config.target_parameters)]


def is_saved_whole(config: AdapterConfig, name: str) -> bool:
    """Whether `modules_to_save` names a module, or one that it is part of; the end of a name is enough."""
    parts = name.split(".")
    parents = (".".join(parts[: end + 1]) for end in range(len(parts)))
    return any(parent.endswith(saved) for parent in parents for saved in config.modules_to_save)


def token_indices(config: AdapterConfig, name: str) -> Sequence[int]:
    """The rows of a module's table that `trainable_token_indices` replaces; a bare list is of the token table."""
    indices = config.trainable_token_indices
    by_module = indices if isinstance(indices, Mapping) else {TABLE: indices}
    return next((rows for module, rows in by_module.items() if _ends_with(name, [module])), ())


def targets(config: AdapterConfig, modules: Modules) -> Iterator[str]:
    """Every module that an adapter must have tensors for."""
    for name, module in modules.items():
        saved = is_saved_whole(config, name) and any(True for _ in module.parameters(recurse=False))
        is_named = is_target(config, name, modules) or target_parameters(config, name, modules)
        if saved or is_named or token_indices(config, name):
            yield name


def _is_excluded(config: AdapterConfig, name: str) -> bool:
    excluded = config.exclude_modules
    if isinstance(excluded, str) and excluded and re.fullmatch(excluded, name):
        return True
    if not isinstance(excluded, str) and _ends_with(name, excluded):
        return True
    return any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in config.modules_to_save)


def _is_chosen_layer(config: AdapterConfig, name: str) -> bool:
    """Whether `layers_to_transform` allows a module: the number after the first list of layers counts."""
    chosen = config.layers_to_transform
    if chosen == ():
        return True
    layers = [chosen] if isinstance(chosen, int) else chosen
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    match = next((match for expression in expressions if (match := re.match(expression, name))), None)
    return match is not None and int(match[1]) in layers


def _ends_with(name: str, endings: Sequence[str]) -> bool:
    """Whether a name is one of the endings, or ends with one from a dot on."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
