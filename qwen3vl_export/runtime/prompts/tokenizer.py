"""Text to token ids and back with the checkpoint's `tokenizer.json`; equal to transformers' `AutoTokenizer`.

Knows tokens; nothing about chat templates or images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ...errors import ArtifactError, InputError, first_line, is_panic

INCOMPLETE = "\ufffd"  # the decoding of bytes that are not yet a whole character


class Tokenizer:
    """The tokenizer of the artifact directory `root`.

    Attributes:
        config: `tokenizer_config.json`, parsed.
        special: the named tokens of `config`, such as `eos_token` and `pad_token`.
        added_tokens: the texts that are one token wherever they occur, and whether that token is special.
        special_ids: the ids of those that are.

    Raises:
        ArtifactError: a file is missing or cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self._path = path = root / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
            path = root / "tokenizer_config.json"
            self.config: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if not isinstance(self.config, dict):
                raise TypeError("it is not a JSON object")
        except OSError as error:
            raise ArtifactError(f"{error.filename}: {error.strerror}", "Rebuild the artifact") from error
        except BaseException as error:  # the tokenizers package raises bare Exception
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise ArtifactError(f"{path}: not a tokenizer ({first_line(error)})", "Rebuild the artifact") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.special = special_tokens(self.config)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.added_tokens: dict[str, bool] = {token.content: token.special for token in added.values()}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            InputError: as `encode_text`.
        """
        ids: list[int] = encode_text(self._tokenizer, text).ids
        return ids

    def find_added(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Each added token in a text: its id, and where it starts and ends."""
        encoding = encode_text(self._tokenizer, text)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self._added_ids:
                yield token_id, start, end

    def encode_plain(self, text: str) -> list[int]:
        """The token ids of a text in which no added token is recognized: they are spelled out."""
        ids: list[int] = encode_text(self._without_added, text, add_special_tokens=False).ids
        return ids

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def _without_added(self) -> tokenizers.Tokenizer:
        definition = {
            **json.loads(self._path.read_text("utf-8")),
            "added_tokens": [],
            "padding": None,
            "truncation": None,
        }
        return tokenizers.Tokenizer.from_str(json.dumps(definition))

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


def encode_text(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool = True) -> tokenizers.Encoding:
    """The encoding of a text.

    Raises:
        InputError: half of a surrogate pair, which is no character and has no bytes.
    """
    try:
        text.encode("utf-8")  # the tokenizers package only says that this is no string
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            f"the text holds {half}, half of a surrogate pair", "Decode it as UTF-8, or remove what is no character"
        ) from error
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The `*_token` entries of `tokenizer_config.json`: each is a string there, or an object with `content`."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


class StreamDecoder:
    """Decodes a stream of tokens, never splitting a character.

    A character may take several tokens. While the pending tokens end in an incomplete one, no text is returned. The
    pieces together equal the decoding of all tokens at once.

    Args:
        skip_special: special tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; possibly empty."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending, self._skip_special)
        if text.endswith(INCOMPLETE):
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """The pending text when no more tokens follow; incomplete characters become U+FFFD."""
        text = self._tokenizer.decode(self._pending, self._skip_special)
        self._pending.clear()
        return text
