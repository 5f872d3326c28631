"""The tokenizer that transformers makes of a checkpoint's files, and the files a runtime needs to do the same.

transformers builds it from `tokenizer.json` or from `vocab.json` and `merges.txt`, and adds the tokens that only other
files name. Where the stored `tokenizer.json` is that tokenizer, it is kept as it is.

Knows tokens; nothing about templates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer

from ....contract import Facts
from ....errors import CheckpointError
from ....runtime.prompts.tokenizer import special_tokens
from .sources import Json, refuse, stored_json, to_bytes

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
VOCABULARY = ("vocab.json", "merges.txt")
# What the processor calls the tokens of pictures, unless the tokenizer names others; and the facts that must agree.
PICTURE_TOKENS = {
    "image_token": ("<|image_pad|>", "image_token_id"),
    "video_token": ("<|video_pad|>", "video_token_id"),
    "vision_start_token": ("<|vision_start|>", "vision_start_token_id"),
    "vision_end_token": ("<|vision_end|>", "vision_end_token_id"),
}


def load_tokenizer(root: Path, facts: Facts) -> Any:
    """transformers' tokenizer of a checkpoint.

    Raises:
        CheckpointError: there is none that transformers reads, one that is not of the tokenizers package, or one whose
            tokens are not the model's.
    """
    advice = "Take the tokenizer's files from the published checkpoint"
    if not (root / TOKENIZER).is_file() and not all((root / name).is_file() for name in VOCABULARY):
        raise CheckpointError(f"{root}: no {TOKENIZER}, nor {' and '.join(VOCABULARY)}", advice)
    with refuse(root, "the tokenizer", advice):
        tokenizer = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise CheckpointError(
                f"{root}: {type(tokenizer).__name__} has no {TOKENIZER}", "Save it as a fast tokenizer"
            )
    if tokenizer.split_special_tokens:
        raise CheckpointError(f"{root / CONFIG}: split_special_tokens is true, runtimes keep them whole", "Remove it")
    check_tokens(tokenizer, root, facts)
    return tokenizer


def check_tokens(tokenizer: Any, root: Path, facts: Facts) -> None:
    """Refuse a tokenizer whose ids are not the model's.

    Raises:
        CheckpointError: a token without a row in the token table, or other ids for pictures than the config's.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    token, token_id = max(vocabulary.items(), key=lambda item: item[1])
    if token_id >= facts.vocab_size:
        raise CheckpointError(
            f"{root}: the tokenizer has a token {token_id} ({token}), the model {facts.vocab_size} tokens",
            "Take tokenizer and weights from the same checkpoint",
        )
    for name, (published, fact) in PICTURE_TOKENS.items():
        token = getattr(tokenizer, name, published)
        configured = getattr(facts, fact)
        if vocabulary.get(token) != configured:
            known = f"{token} is {vocabulary[token]}" if token in vocabulary else f"there is no {token}"
            raise CheckpointError(
                f"{root / 'config.json'}: {fact} is {configured}, in the tokenizer {known}",
                f"Set {fact} to the id of {token}" if token in vocabulary else "Take the published tokenizer",
            )


def tokenizer_bytes(tokenizer: Any, root: Path) -> bytes:
    """`tokenizer.json`: the stored one if it is transformers' tokenizer."""
    built = tokenizer.backend_tokenizer.to_str(pretty=True)
    path = root / TOKENIZER
    if path.is_file():
        with refuse(path, "it", "Take the tokenizer's files from the published checkpoint"):
            stored = tokenizers.Tokenizer.from_file(str(path)).to_str()
        if essence(json.loads(stored)) == essence(json.loads(built)):
            return path.read_bytes()
    values = json.loads(built)
    return to_bytes({**values, "truncation": None, "padding": None})


def essence(values: dict[str, Any]) -> dict[str, Any]:
    """What decides ids and text in a serialized tokenizer: no offsets, empty affixes or templates that add nothing."""
    post_processor = values["post_processor"] or {}
    adds_nothing = post_processor.get("type") == "ByteLevel" or (
        post_processor.get("type") == "TemplateProcessing" and not post_processor["special_tokens"]
    )
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return {
        **values,
        "truncation": None,
        "padding": None,
        "pre_tokenizer": drop_offsets(values["pre_tokenizer"]),
        "post_processor": None if adds_nothing else post_processor or None,
        "decoder": {"type": "ByteLevel"} if (values["decoder"] or {}).get("type") == "ByteLevel" else values["decoder"],
        "model": {key: None if key in affixes and not value else value for key, value in values["model"].items()},
    }


def drop_offsets(step: Any) -> Any:
    """A pre-tokenizer without what concerns only the places of tokens in the text."""
    if isinstance(step, dict):
        return {key: drop_offsets(value) for key, value in step.items() if key != "trim_offsets"}
    return [drop_offsets(each) for each in step] if isinstance(step, list) else step


def config_bytes(tokenizer: Any, root: Path, template: str) -> bytes:
    """`tokenizer_config.json`: the stored one if it names transformers' special tokens and no other template."""
    stored = stored_json(root, CONFIG)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    if stored is not None and special_tokens(stored) == special and stored.get("chat_template", template) == template:
        return (root / CONFIG).read_bytes()
    kept: Json = {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen3VLProcessor"} | dict(stored or {})
    values = {name: value for name, value in kept.items() if name not in special_tokens(kept)}
    values |= special
    return to_bytes(values | ({"chat_template": template} if "chat_template" in values else {}))
