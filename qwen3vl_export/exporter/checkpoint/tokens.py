"""The token ids that `config.json` states, compared with the tokenizer's. Knows no other setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...runtime.tokenizer import Tokenizer

DEFAULTS = {  # the tokens' texts, unless tokenizer_config.json has others; source: transformers' `Qwen3VLProcessor`
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def check_token_ids(root: Path, config: Any) -> None:
    """Compare the ids of the tokens around and in pictures; without a tokenizer there is nothing to compare.

    Args:
        root: directory of the checkpoint.
        config: `Qwen3VLConfig` or `Qwen3VLMoeConfig`.

    Raises:
        CheckpointError: the tokenizer has another id for a token, or none.
        ArtifactError: the tokenizer cannot be read.
    """
    if not all((root / name).is_file() for name in FILES):
        return
    tokenizer = Tokenizer(root)
    for name, default in DEFAULTS.items():
        token, stated = tokenizer.special.get(name, default), getattr(config, f"{name}_id")
        if (token_id := tokenizer.id_of(token)) != stated:
            tokenized = f"gives {token} the id {token_id}" if token_id is not None else f"has no token {token}"
            raise CheckpointError(
                f"{root / 'config.json'}: {name}_id is {stated}, tokenizer.json {tokenized}",
                "Take both files from the same checkpoint",
            )
