"""Text to token ids and back with the checkpoint's `tokenizer.json`; equal to transformers' `AutoTokenizer`.

Knows tokens; nothing about chat templates or images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import ArtifactError

INCOMPLETE = "\ufffd"  # the decoding of bytes that are not yet a whole character


class Tokenizer:
    """The tokenizer of the artifact directory `root`.

    Attributes:
        config: `tokenizer_config.json`, parsed.
        special: the named tokens of `config`, such as `eos_token` and `pad_token`.

    Raises:
        ArtifactError: a file is missing or cannot be read.
    """

    def __init__(self, root: Path) -> None:
        path = root / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
            self.config: dict[str, Any] = json.loads((root / "tokenizer_config.json").read_text("utf-8"))
            if not isinstance(self.config, dict):
                raise TypeError("tokenizer_config.json is not a JSON object")
        except OSError as error:
            raise ArtifactError(f"{error.filename}: {error.strerror}", "Rebuild the artifact") from error
        except Exception as error:  # the tokenizers package raises bare Exception
            raise ArtifactError(f"{path}: not a tokenizer ({error})", "Rebuild the artifact") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.special = special_tokens(self.config)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token(self, token_id: int) -> str:
        """The text of one token.

        Raises:
            ArtifactError: the vocabulary has no such id.
        """
        text: str | None = self._tokenizer.id_to_token(token_id)
        if text is None:
            raise ArtifactError(f"tokenizer.json: no token {token_id}", "Rebuild the artifact")
        return text

    def id_of(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The `*_token` entries of `tokenizer_config.json`: each is a string there, or an object with `content`."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


class StreamDecoder:
    """Decodes a stream of tokens, never splitting a character.

    A character may take several tokens. While the pending tokens end in an incomplete one, no text is returned. The
    pieces together equal the decoding of all tokens at once. Special tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; possibly empty."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(INCOMPLETE):
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """The pending text when no more tokens follow; incomplete characters become U+FFFD."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
