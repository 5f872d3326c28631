"""What a configuration says that transformers ignores, and the graphs with it. Knows configurations only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from .rotary import context_length, scaled_length, unread_settings

HARMLESS = {  # keys that are no field of transformers' classes and have no bearing on a forward pass
    "bos_token_id",
    "eos_token_id",
    "is_causal",
    "layer_types",
    "max_window_layers",
    "partial_rotary_factor",  # a rotary setting by the time it is read
    "use_cache",
}
MATTERING = {"norm_topk_prob": True}  # keys of other models, and the value that this architecture computes with
ROTARY = ("rope_scaling", "rope_parameters", "rope_theta")


def warn_of_ignored(config: Any) -> Iterator[str]:
    """One line about each setting that has no effect in transformers, nor in the graphs, but would in other models.

    Args:
        config: `Qwen3VLConfig` or `Qwen3VLMoeConfig`, supported.
    """
    text, vision = config.text_config, config.vision_config
    for name, value in unread_settings(text):
        yield _line(f"text_config's rotary setting {name}", value)
    for section, values in (("text_config", text), ("vision_config", vision)):
        for name, value in _undeclared(values):
            if value and name not in (*HARMLESS, *MATTERING) and value != getattr(config, name, None):
                yield _line(f"{section}.{name}", value)
    for name, computed in MATTERING.items():
        if getattr(text, name, computed) != computed:
            yield _line(f"text_config.{name}", getattr(text, name))
    declared = {field.name for field in fields(text)} | {field.name for field in fields(vision)}
    for name, value in _undeclared(config):
        if name in ROTARY or (name in declared and value != getattr(text, name, value)):
            yield _line(f"{name} beside text_config", value)
    if "mrope_section" not in text.rope_parameters:
        yield "config.json: text_config states no mrope_section; transformers' default is used, [24, 20, 20]"
    if text.rope_parameters["rope_type"] != "default" and scaled_length(text) > context_length(text):
        yield (
            f"config.json: text_config's rotary settings scale the context to {scaled_length(text)} tokens, but "
            f"max_position_embeddings is {context_length(text)}, which the runtime holds to"
        )


def _line(key: str, value: object) -> str:
    return f"config.json: transformers ignores {key} ({value!r}), and so do the graphs"


def _undeclared(values: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values that were stored but are no fields of the class, nor another name of one."""
    known = {field.name for field in fields(values)} | {*values.attribute_map, *values.attribute_map.values()}
    for name, value in vars(values).items():
        if name not in known and not name.startswith("_") and not hasattr(type(values), name):
            yield name, value
