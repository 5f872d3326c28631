"""Token ids as `AutoTokenizer` gives them, and text that streams in whole characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime.prompts.tokenizer import INCOMPLETE, StreamDecoder, Tokenizer, special_tokens

from ...fixtures.paths import TINY

OURS = Tokenizer(TINY)
THEIRS = AutoTokenizer.from_pretrained(TINY)
TEXTS = [
    "What is this?",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n<|im_start|>assistant\n",
    "naïve café, Straße, Ω, 你好 世界",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301",
    "  leading, trailing  \n\n\ttabs \r\n",
    "<think>\n</think><tool_call>{}",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_equal_transformers(text: str) -> None:
    ids = OURS.encode(text)
    assert ids == THEIRS(text)["input_ids"]
    assert OURS.decode(ids) == THEIRS.decode(ids, skip_special_tokens=True)
    assert OURS.decode(ids, skip_special=False) == THEIRS.decode(ids)


@given(st.text(max_size=60))
def test_encode_equals_transformers_on_any_text(text: str) -> None:
    assert OURS.encode(text) == THEIRS(text)["input_ids"]


@given(st.text(max_size=40))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    ids = OURS.encode(text)
    stream = StreamDecoder(OURS)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == OURS.decode(ids)
    assert INCOMPLETE in text or not any(INCOMPLETE in piece for piece in pieces)


@given(st.lists(st.integers(0, 537), max_size=40), st.booleans())
def test_any_tokens_add_up_to_their_decoding(ids: list[int], skip_special: bool) -> None:
    stream = StreamDecoder(OURS, skip_special)
    assert "".join([stream.push(token) for token in ids]) + stream.finish() == OURS.decode(ids, skip_special)


def test_a_character_of_several_tokens_is_held_back() -> None:
    ids = OURS.encode("🙂")
    assert len(ids) == 4
    stream = StreamDecoder(OURS)
    assert [stream.push(token) for token in ids] == ["", "", "", "🙂"]
    assert stream.finish() == ""
    for token in ids[:2]:
        stream.push(token)
    assert stream.finish() == INCOMPLETE  # cut short: shown as broken, not lost


def test_the_published_tokenizer_gives_the_ids_that_transformers_gives(
    published_tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").symlink_to(published_tokenizer)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    ours, theirs = Tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert (ours.token(151668), ours.id_of("<|vision_start|>"), ours.id_of("<|video_pad|>")) == (
        "</think>",
        151652,
        151656,
    )
    with pytest.raises(ArtifactError, match="no token 151669"):
        ours.token(151669)


@pytest.mark.parametrize("text", ["a \ud800", "\udcff", "\ud83d<|im_end|>\ude42"])
def test_half_a_character_is_refused(text: str) -> None:
    for encode in (OURS.encode, OURS.encode_plain, lambda text: list(OURS.find_added(text))):
        with pytest.raises(InputError, match=r"the text holds U\+D[\dA-F]{3}, half of a surrogate pair"):
            encode(text)


def test_special_tokens_by_name() -> None:
    assert OURS.special == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert special_tokens({"eos_token": {"content": "<e>"}, "bos_token": None, "other": "x"}) == {"eos_token": "<e>"}
    assert OURS.token(524) == "<|image_pad|>"
    assert OURS.id_of("<|image_pad|>") == 524
    assert OURS.id_of("no such token") is None


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: No such file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        Tokenizer(tmp_path)
    with pytest.raises(ArtifactError, match="no token 99999"):
        OURS.token(99999)
