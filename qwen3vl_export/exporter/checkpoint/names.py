"""What a submodule's parameters are called in a checkpoint."""

from __future__ import annotations

PREFIXES = {  # of a submodule's parameters -> of the checkpoint's tensors
    "visual.": "model.visual.",
    "language_model.": "model.language_model.",
    "embed_tokens.": "model.language_model.embed_tokens.",
    "lm_head.": "lm_head.",
}


def checkpoint_name(parameter: str, tied: bool) -> str:
    """The checkpoint's name of a parameter: `visual.pos_embed.weight` -> `model.visual.pos_embed.weight`."""
    if tied and parameter == "lm_head.weight":
        return "model.language_model.embed_tokens.weight"
    for prefix, checkpoint_prefix in PREFIXES.items():
        if parameter.startswith(prefix):
            return checkpoint_prefix + parameter.removeprefix(prefix)
    raise AssertionError(f"{parameter}: no tensor of a checkpoint has this parameter")
