"""Generated tokens to text: whole characters, ended by a stop string, a loop or a time limit, with timings.

Knows tokens, text and the clock; nothing about graphs or prompts.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .generate import Step
from .prompts.reply import AnswerPart, Reply, Splitter, overlap, parse_reply
from .prompts.tokenizer import StreamDecoder, Tokenizer
from .repetition import LoopDetector

FinishReason = Literal["stop", "length", "time", "repetition"]


@dataclass(frozen=True)
class Limits:
    """When an answer ends if the model does not end it first.

    Raises:
        InputError: a number that is not above 0, or an empty stop string.
    """

    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    max_time: float | None = None  # seconds; the token being generated is finished
    end_loops: bool = False  # the text ends when it repeats itself without end, as `repetition` defines that

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}", "Use at least 1")
        if self.max_time is not None and not self.max_time > 0:
            raise InputError(f"max_time is {self.max_time}", "Use a number of seconds above 0")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {list(self.stop)}", "Use strings of at least one character")

    @classmethod
    def of(
        cls, max_new_tokens: int, stop: str | Sequence[str] | None, max_time: float | None, end_loops: bool = False
    ) -> Limits:
        """The limits for one stop string, several, or None."""
        return cls(max_new_tokens, (stop,) if isinstance(stop, str) else tuple(stop or ()), max_time, end_loops)


class StopStrings:
    """Passes text on until a stop string appears; the stop string is never returned, however it is split over pieces.

    Text that may be the start of a stop string is held back until it is decided. Of several stop strings, the one
    completed first counts.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = strings
        self.matched = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now known to precede any stop string."""
        self._held += text
        ends = [(start + len(stop), start) for stop in self.strings if (start := self._held.find(stop)) >= 0]
        if ends:
            self.matched = True
            shown, self._held = self._held[: min(ends)[1]], ""
            return shown
        length = len(self._held) - max((overlap(self._held, stop) for stop in self.strings), default=0)
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def finish(self) -> str:
        """The text still held back, when no more follows."""
        rest, self._held = self._held, ""
        return rest


class RowText:
    """The text of one row, token by token; `finish_reason` is set once it has ended by itself."""

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: frozenset[int], limits: Limits, keep_special_tokens: bool = False
    ) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special=not keep_special_tokens)
        self._stops = StopStrings(limits.stop)
        self._stop_ids = stop_ids
        self._loop = LoopDetector() if limits.end_loops else None
        self.finish_reason: FinishReason | None = None

    def push(self, token_id: int) -> str:
        """The text this token completes; possibly empty, and always empty once the row has ended."""
        if self.finish_reason is not None:
            return ""
        if token_id in self._stop_ids:
            self.finish_reason = "stop"
            return self.finish()
        text = self._stops.push(self._decoder.push(token_id))
        if self._stops.matched:
            self.finish_reason = "stop"
        elif self._loop is not None and self._loop.push(token_id):
            self.finish_reason = "repetition"
        return text

    def finish(self) -> str:
        """The rest of the text, when no more tokens follow."""
        return "" if self._stops.matched else self._stops.push(self._decoder.finish()) + self._stops.finish()


class Answer(Iterator[str]):
    """The answer of one row as an iterator over its text, in pieces that never split a character.

    While it runs and afterwards: `text` so far, `tokens` generated, `first_token_seconds` since the question was asked,
    `tokens_per_second` after the first token. At the end `finish_reason` is `"stop"` (a stop token or stop string),
    `"length"` (`max_new_tokens`, or a full context), `"time"` or `"repetition"` (a loop); it is None until the answer
    is complete.

    Args:
        steps: the tokens; closed as soon as the answer is complete.
        started: when the question was asked, by `time.perf_counter`; `max_time` counts from then.
        thinking: the prompt ends with `<think>`, so the text begins inside reasoning.
        prompt_tokens: number of tokens in the prompt, for the caller's information.
        keep_special_tokens: special tokens are part of the text, except the stop token that ends it.
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
        keep_special_tokens: bool = False,
    ) -> None:
        self.thinking = thinking
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.tokens = 0
        self.first_token_seconds: float | None = None
        self.finish_reason: FinishReason | None = None
        self._started = self._first = self._last = started
        self._limits = limits
        self._row = RowText(tokenizer, stop_ids, limits, keep_special_tokens)
        self._pieces = self._run(steps)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    def read(self) -> str:
        """Generate to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """End the answer here, so that the conversation keeps what was read; `finish_reason` stays None."""
        self._pieces.close()

    def parts(self) -> Iterator[AnswerPart]:
        """The text as it is generated, each part marked as content, reasoning or tool call."""
        splitter = Splitter(self.thinking)
        for piece in self:
            yield from splitter.push(piece)
        yield from splitter.finish()

    @property
    def reply(self) -> Reply:
        """The text so far, parsed."""
        return parse_reply(self.text, self.thinking)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first token; None with fewer than two tokens."""
        seconds = self._last - self._first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    def _run(self, steps: Iterator[Step]) -> Generator[str]:
        reason: FinishReason = "length"
        try:
            for step in steps:
                self._count()
                if piece := self._row.push(int(step.tokens[0])):
                    yield piece
                if self._row.finish_reason is not None:
                    reason = self._row.finish_reason
                    break
                if time_is_up(self._started, self._limits):
                    reason = "time"
                    break
        finally:
            close_steps(steps)
        if rest := self._row.finish():
            yield rest
        self.finish_reason = reason

    def _count(self) -> None:
        self._last = time.perf_counter()
        if self.first_token_seconds is None:
            self._first = self._last
            self.first_token_seconds = self._first - self._started
        self.tokens += 1


def read_texts(
    steps: Iterator[Step],
    rows: int,
    tokenizer: Tokenizer,
    stop_ids: frozenset[int],
    limits: Limits,
    started: float,
    keep_special_tokens: bool = False,
) -> list[str]:
    """The whole text of each row of a batch; arguments as for `Answer`."""
    decoders = [RowText(tokenizer, stop_ids, limits, keep_special_tokens) for _ in range(rows)]
    texts = [""] * rows
    for step in steps:
        for row, token in enumerate(step.tokens.tolist()):
            texts[row] += decoders[row].push(token)
        if all(decoder.finish_reason for decoder in decoders) or time_is_up(started, limits):
            break
    close_steps(steps)
    return [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]


def time_is_up(started: float, limits: Limits) -> bool:
    return limits.max_time is not None and time.perf_counter() - started >= limits.max_time


def close_steps(steps: Iterator[Step]) -> None:
    """Let a generator that is abandoned early free its cache now."""
    if (close := getattr(steps, "close", None)) is not None:
        close()
