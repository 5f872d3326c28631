"""What tensors are called: in the files, in transformers' model, as a submodule's parameters, and where a graph fuses
several of them into one weight."""

from __future__ import annotations

from collections.abc import Iterable

from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from ...errors import CheckpointError

PREFIXES = {  # of a submodule's parameters -> of the checkpoint's tensors
    "visual.": "model.visual.",
    "language_model.": "model.language_model.",
    "embed_tokens.": "model.language_model.embed_tokens.",
    "lm_head.": "lm_head.",
    "score.": "score.",
}
TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
SCORE = "score.weight"  # two rows of the head, of a reranker: no file has it under this name
BASE = "model."  # `base_model_prefix` of transformers' classes
FUSED = {  # a product that stands in for several of one input -> those, in the order of their rows
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
WRAPPED = (BASE, "model.language_model.", "model.visual.")  # prefixes that other programs write in another way


def checkpoint_name(parameter: str, tied: bool) -> str:
    """The checkpoint's name of a parameter: `visual.pos_embed.weight` -> `model.visual.pos_embed.weight`."""
    if tied and parameter == HEAD:
        return TABLE
    for prefix, checkpoint_prefix in PREFIXES.items():
        if parameter.startswith(prefix):
            return checkpoint_prefix + parameter.removeprefix(prefix)
    raise AssertionError(f"{parameter}: no tensor of a checkpoint has this parameter")


def parameter_name(tensor: str) -> str | None:
    """The parameter of a checkpoint's tensor, as if the head were not tied; None if it is of no submodule."""
    for prefix, checkpoint_prefix in sorted(PREFIXES.items(), key=lambda pair: len(pair[1]), reverse=True):
        if tensor.startswith(checkpoint_prefix):
            return prefix + tensor.removeprefix(checkpoint_prefix)
    return None


def fused_name(name: str) -> str | None:
    """The weight that one of `FUSED` belongs to: `layers.0.mlp.up_proj.weight` -> `layers.0.mlp.gate_up_proj.weight`;
    None for any other."""
    for fused, members in FUSED.items():
        for member in members:
            if (renamed := _replace_module(name, member, fused)) is not None:
                return renamed
    return None


def members_of(name: str) -> tuple[str, ...]:
    """The weights whose rows follow one another in that of this name: `layers.0.mlp.gate_up_proj.weight` ->
    `layers.0.mlp.gate_proj.weight`, `layers.0.mlp.up_proj.weight`. One that is not fused is its own only member.

    Args:
        name: of a parameter or of a module, with any prefix.
    """
    for fused, members in FUSED.items():
        renamed = [_replace_module(name, fused, member) for member in members]
        if None not in renamed:
            return tuple(filter(None, renamed))
    return (name,)


def _replace_module(name: str, module: str, new: str) -> str | None:
    """A dotted name with one module in place of another; None if it does not have that module."""
    before, match, after = f".{name}.".partition(f".{module}.")
    return f"{before}.{new}.{after}".strip(".") if match else None


def rename_tensors(stored: Iterable[str], model_type: str, source: str) -> dict[str, str]:
    """The parameter of transformers' model that each stored tensor is loaded into -> its name in the files.

    Old names are renamed by transformers' own table, and the prefix `model.` is added or removed. A tensor of no
    parameter keeps its name.

    Args:
        source: the checkpoint, for errors.

    Raises:
        CheckpointError: two tensors are the same parameter.
    Source: transformers `core_model_loading.rename_source_key`.
    """
    rules = [*(get_checkpoint_conversion_mapping(model_type) or ()), *get_checkpoint_conversion_mapping("legacy")]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    stored_names: dict[str, str] = {}
    for stored_name in stored:
        name = stored_name
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        if _is_parameter(name.removeprefix(BASE)):
            name = name.removeprefix(BASE)
        elif _is_parameter(BASE + name):
            name = BASE + name
        if name in stored_names:
            raise CheckpointError(
                f"{source}: tensors {stored_names[name]} and {stored_name} are both {name}", "Remove one of them"
            )
        stored_names[name] = stored_name
    return stored_names


def foreign_prefix(name: str, stored: Iterable[str]) -> tuple[str, str] | None:
    """How another program began the name of a tensor, and how transformers does; None if it is not stored at all.

    Args:
        name: of a parameter, e.g. `model.language_model.norm.weight`.
        stored: names in the files, e.g. `module.model.language_model.norm.weight`.
    """
    unknown = sorted(candidate for candidate in stored if not _is_parameter(candidate))
    for prefix in ("", *WRAPPED):
        if not name.startswith(prefix):
            continue
        tail = name.removeprefix(prefix)
        for candidate in unknown:
            if candidate == tail or candidate.endswith(f".{tail}"):
                module = "" if prefix else f"{tail.partition('.')[0]}."
                return candidate.removesuffix(tail) + module, prefix + module
    return None


def _is_parameter(name: str) -> bool:
    return name.startswith(tuple(PREFIXES.values()))
