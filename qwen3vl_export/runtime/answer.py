"""Generated tokens to text: whole characters, cut at a stop string or after a time, with how long it took.

Knows tokens, text and the clock; nothing about graphs or prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .generate import Step
from .reply import Part, Reply, Splitter, beginning, parse_reply
from .tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "time"]


@dataclass(frozen=True)
class Limits:
    """Where an answer ends if the model does not end it.

    Raises:
        InputError: a number that is not above 0, or an empty stop string.
    """

    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    max_time: float | None = None  # seconds; the token in the making is finished

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}", "At least 1 works")
        if self.max_time is not None and not self.max_time > 0:
            raise InputError(f"max_time is {self.max_time}", "Use a number of seconds above 0")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {list(self.stop)}", "Use strings of at least one character")

    @classmethod
    def of(cls, max_new_tokens: int, stop: str | Sequence[str] | None, max_time: float | None) -> Limits:
        """From what a caller gives: one stop string or several, or None."""
        return cls(max_new_tokens, (stop,) if isinstance(stop, str) else tuple(stop or ()), max_time)


class StopStrings:
    """Passes text on until a stop string appears, which is never given out, however it is split over pieces.

    Text that may be the beginning of a stop string is held back until that is known. Of several that appear, the one
    that is complete first counts.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = strings
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """What is safe to show of everything so far."""
        self._held += text
        ends = [(start + len(stop), start) for stop in self.strings if (start := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            shown, self._held = self._held[: min(ends)[1]], ""
            return shown
        keep = max((beginning(self._held, stop) for stop in self.strings), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back for nothing."""
        rest, self._held = self._held, ""
        return rest


class RowText:
    """The text of one row, token by token."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], stop: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(stop)
        self._stop_ids = stop_ids
        self.ended = False

    def push(self, token_id: int) -> str:
        """The text that is sure with this token; maybe none, and none once the row has ended."""
        if self.ended:
            return ""
        if token_id in self._stop_ids:
            self.ended = True
            return self.finish()
        text = self._stops.push(self._decoder.push(token_id))
        self.ended = self._stops.found
        return text

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        return "" if self._stops.found else self._stops.push(self._decoder.finish()) + self._stops.finish()


class Answer(Iterator[str]):
    """The answer of one row as an iterator over its text, in pieces that never split a character.

    While it runs and after: `text` so far, `tokens` generated, `first_token_seconds` since the question was asked,
    `tokens_per_second` after the first one. At the end `finish_reason` is `"stop"` (the model's end or a stop string),
    `"length"` (`max_new_tokens`, or a full context) or `"time"`; it is None while the answer is not complete.

    Args:
        steps: the tokens; closed as soon as the answer is complete.
        started: when the question was asked, by `time.perf_counter`; `max_time` counts from then.
        thinking: the prompt ends with `<think>`, so the text begins inside reasoning.
        prompt_tokens: how many tokens the question has, kept for the caller.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        limits: Limits,
        started: float,
        thinking: bool = False,
        prompt_tokens: int = 0,
    ) -> None:
        self.thinking = thinking
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.tokens = 0
        self.first_token_seconds: float | None = None
        self.finish_reason: FinishReason | None = None
        self._started = self._first = self._last = started
        self._limits = limits
        self._row = RowText(tokenizer, stop_ids, limits.stop)
        self._pieces = self._run(steps)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    def read(self) -> str:
        """The whole text, once everything is generated."""
        for _ in self:
            pass
        return self.text

    def parts(self) -> Iterator[Part]:
        """The text as it is made, each part marked as content, reasoning or tool call."""
        splitter = Splitter(self.thinking)
        for piece in self:
            yield from splitter.push(piece)
        yield from splitter.finish()

    @property
    def reply(self) -> Reply:
        """The text so far, taken apart."""
        return parse_reply(self.text, self.thinking)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None with fewer than two tokens."""
        seconds = self._last - self._first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    def _run(self, steps: Iterator[Step]) -> Iterator[str]:
        reason: FinishReason = "length"
        for step in steps:
            self._count()
            if piece := self._row.push(int(step.tokens[0])):
                yield piece
            if self._row.ended:
                reason = "stop"
                break
            if late(self._started, self._limits):
                reason = "time"
                break
        close(steps)
        if rest := self._row.finish():
            yield rest
        self.finish_reason = reason

    def _count(self) -> None:
        self._last = time.perf_counter()
        if self.first_token_seconds is None:
            self._first = self._last
            self.first_token_seconds = self._first - self._started
        self.tokens += 1


def read_rows(
    steps: Iterator[Step], rows: int, tokenizer: Tokenizer, stop_ids: frozenset[int], limits: Limits, started: float
) -> list[str]:
    """The whole text of each of `rows` rows; arguments as `Answer`."""
    texts = [RowText(tokenizer, stop_ids, limits.stop) for _ in range(rows)]
    found = [""] * rows
    for step in steps:
        for index, token in enumerate(step.tokens.tolist()):
            found[index] += texts[index].push(token)
        if all(text.ended for text in texts) or late(started, limits):
            break
    close(steps)
    return [text + row.finish() for text, row in zip(found, texts, strict=True)]


def late(started: float, limits: Limits) -> bool:
    return limits.max_time is not None and time.perf_counter() - started >= limits.max_time


def close(steps: Iterator[Step]) -> None:
    """Let a generator that was left early free its cache now."""
    if (stop := getattr(steps, "close", None)) is not None:
        stop()
