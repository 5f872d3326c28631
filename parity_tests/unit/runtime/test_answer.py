"""Tokens to text: stop strings that never show, time that ends an answer, rows that end alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime.answer import Answer, Limits, StopStrings, read_texts
from qwen3vl_export.runtime.generate import Step
from qwen3vl_export.runtime.prompts.reply import overlap

from ...fixtures.answers import STOP_IDS, TOKENIZER, make_steps

FEW = st.text("ab.", max_size=30)  # few letters, so that beginnings of stop strings are common
STOPS = st.lists(st.text("ab.", min_size=1, max_size=5), max_size=3)


def answer(text: str, end: bool = True, **limits: Any) -> Answer:
    return Answer(make_steps(text, end=end), TOKENIZER, STOP_IDS, Limits(**limits), time.perf_counter())


def cut(text: str, stops: list[str]) -> str:
    """The definition: the text before the stop string that is the first to be complete."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(FEW, STOPS, st.data())
def test_stop_strings_in_any_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    stream = StopStrings(stops)
    shown, rest = "", text
    while rest and not stream.matched:
        length = data.draw(st.integers(1, len(rest)))
        shown += stream.push(rest[:length])
        rest = rest[length:]
        assert cut(text, stops).startswith(shown)  # nothing is shown that must not be
    assert shown + stream.finish() == cut(text, stops)
    assert stream.matched == any(stop in text for stop in stops)


@given(FEW, STOPS)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    shown = "".join(stream.push(letter) for letter in text)
    if not stream.matched:
        assert len(text) - len(shown) == max((overlap(text, stop) for stop in stops), default=0)


@pytest.mark.parametrize(("text", "stop", "length"), [("xab", "abc", 2), ("abc", "abc", 0), ("aab", "aabaa", 3)])
def test_beginning(text: str, stop: str, length: int) -> None:
    assert overlap(text, stop) == length


def test_a_stop_string_split_over_tokens_never_shows() -> None:
    text = "top left: a red circle, END, a blue square"
    assert len(TOKENIZER.encode(" END")) > 1
    stopped = answer(text, stop=(" END",))
    assert list(stopped) == list(answer("top left: a red circle,", stop=(" END",)))
    assert (stopped.text, stopped.finish_reason) == ("top left: a red circle,", "stop")
    assert answer(text, stop=("nowhere",)).read() == text


def test_a_character_cut_in_the_middle_before_a_stop_string() -> None:
    ids = [*TOKENIZER.encode("🙂")[:2], *TOKENIZER.encode("END")]
    steps = (Step(np.array([token]), np.zeros((1, 4), np.float32), np.ones(1, np.bool_)) for token in ids)
    text = Answer(steps, TOKENIZER, STOP_IDS, Limits(stop=("END",)), time.perf_counter()).read()
    assert text and "END" not in text


def test_why_an_answer_ended() -> None:
    complete = answer("a cat")
    assert (complete.finish_reason, complete.tokens_per_second, complete.first_token_seconds) == (None, None, None)
    assert (complete.read(), complete.finish_reason, complete.tokens) == (
        "a cat",
        "stop",
        len(TOKENIZER.encode("a cat")) + 1,
    )
    assert complete.tokens_per_second and complete.tokens_per_second > 0
    assert (cut_short := answer("a cat", end=False)).read() == "a cat"
    assert cut_short.finish_reason == "length"


def test_time_ends_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that advances by a second whenever it is read: twice for each token."""
    clock = SimpleNamespace(perf_counter=count(101).__next__)
    monkeypatch.setattr("qwen3vl_export.runtime.answer.time", clock)
    text = "one two three four five six seven eight nine"
    slow = Answer(make_steps(text), TOKENIZER, STOP_IDS, Limits(max_time=6), started=100)
    assert text.startswith(slow.read()) and (slow.finish_reason, slow.tokens) == ("time", 3)
    assert (slow.first_token_seconds, slow.tokens_per_second) == (1, 0.5)
    rows = read_texts(make_steps(text, "two"), 2, TOKENIZER, STOP_IDS, Limits(max_time=2), started=clock.perf_counter())
    assert rows == [TOKENIZER.decode(TOKENIZER.encode(part)[:2]) for part in (text, "two")]


def test_steps_are_closed_as_soon_as_the_answer_is_complete() -> None:
    closed: list[bool] = []

    def endless() -> Iterator[Step]:
        try:
            while True:
                yield from make_steps("a cat.", end=False)
        finally:
            closed.append(True)

    piece = Answer(endless(), TOKENIZER, STOP_IDS, Limits(stop=(".",)), time.perf_counter())
    assert piece.read() == "a cat" and closed == [True]
    assert read_texts(endless(), 1, TOKENIZER, STOP_IDS, Limits(stop=(".",)), time.perf_counter()) == ["a cat"]
    assert closed == [True, True]


def test_rows_end_alone() -> None:
    texts = ["a cat", "two. three", "four and five"]
    rows = read_texts(make_steps(*texts), 3, TOKENIZER, STOP_IDS, Limits(stop=(".",)), time.perf_counter())
    assert rows == ["a cat", "two", "four and five"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_time": 0}, "max_time is 0"),
        ({"max_time": float("nan")}, "max_time is nan"),
        ({"stop": ("",)}, r"stop is \[''\]"),
        ({"stop": (3,)}, r"stop is \[3\]"),
    ],
)
def test_limits_that_mean_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Limits(**values)


def test_one_stop_string_or_several() -> None:
    assert Limits.of(5, "end", None) == Limits.of(5, ["end"], None) == Limits(5, ("end",))
    assert Limits.of(5, None, 2.0) == Limits(5, (), 2.0)
