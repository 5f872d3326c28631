"""What the names of an adapter's tensors say: the module that each belongs to, and its part.

Read are the names that PEFT saves, those with the adapter's name inside (`lora_A.default.weight`), and modules under
the names of older versions of transformers. Knows nothing about settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..safetensors_file import StoredTensor
from .targets import Modules, current_name

FACTOR, TABLE_FACTOR, TOKENS, WHOLE = "factor", "table factor", "tokens", "whole"
BIAS = "bias of B"
OTHER_NAME = r"(?P<adapter>\.(?!weight$|bias$)[^.]+)?"  # the adapter's
PREFIX = "base_model.model."
KEYS = {  # kind -> what its names look like, after the prefix
    FACTOR: re.compile(
        rf"(?P<module>.+?)(?P<depth>(?:\.base_layer)*)\.(?P<part>lora_[AB]){OTHER_NAME}\.(?P<leaf>weight|bias)"
    ),
    TABLE_FACTOR: re.compile(rf"(?P<module>.+)\.(?P<part>lora_embedding_[AB]){OTHER_NAME}"),
    TOKENS: re.compile(rf"(?P<module>.+)\.token_adapter\.(?P<part>trainable_tokens_delta){OTHER_NAME}"),
    WHOLE: re.compile(
        r"(?P<module>.+?)(?P<saved>\.modules_to_save(?:\.[^.]+)??)?(?:(?:\.token_adapter)?\.base_layer)?\.(?P<leaf>[^.]+)"
    ),
}


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter.

    Attributes:
        key: its name in the file.
        kind: which of `KEYS` its name looks like.
        module: the module it belongs to, by its name in transformers' model.
        spelling: the module's name in the file.
        part: lora_A, lora_B, …; or the parameter that it replaces.
        depth: how many parameters of the module are targeted after this one.
    """

    key: str
    kind: str
    module: str
    spelling: str
    part: str
    depth: int
    stored: StoredTensor


def parse_key(key: str, stored: StoredTensor, modules: Modules) -> AdapterTensor | None:
    """What a tensor's name says; None if it belongs to no module of the model."""
    parsed = _match(key, modules)
    if parsed is None:
        return None
    kind, module, match = parsed
    groups = match.groupdict()
    part = BIAS if kind == FACTOR and groups["leaf"] == "bias" else groups.get("part") or groups["leaf"]
    depth = (groups.get("depth") or "").count(".")
    return AdapterTensor(key, kind, module, match["module"], part, depth, stored)


def rename_key(key: str, modules: Modules) -> str:
    """A tensor's name as PEFT saves it today; the same if it belongs to no module of the model."""
    parsed = _match(key, modules)
    if parsed is None:
        return key
    _, module, match = parsed
    rest = match.string[match.end("module") :]
    for group in ("adapter", "saved"):
        rest = rest.replace(match.groupdict().get(group) or "", "", 1)
    return f"{PREFIX}{module}{rest}"


def _match(key: str, modules: Modules) -> tuple[str, str, re.Match[str]] | None:
    """A name's kind, the module it belongs to, and its parts."""
    name = key.removeprefix(PREFIX)
    for kind, pattern in KEYS.items():
        match = pattern.fullmatch(name)
        module = current_name(match["module"], modules) if match else None
        if match is not None and module is not None:
            return kind, module, match
    return None
