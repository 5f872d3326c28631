"""A conversation after anything: the answer equals that of a fresh model, wherever an error or Ctrl-C came."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import Image, Qwen3VL, Video
from qwen3vl_export.runtime import generate as generate_module
from qwen3vl_export.runtime.cache import SharedCache

RNG = np.random.default_rng(71)
PICTURES = [RNG.integers(0, 256, shape, np.uint8) for shape in ((64, 128, 3), (128, 64, 3))]
CLIP = [np.full((64, 64, 3), value, np.uint8) for value in (0, 60, 120, 180)]
RUNTIME = str(Path(generate_module.__file__).parent)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bern"}}}
ACCEPTED: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2+3?"}],
    [{"role": "user", "content": [Image(PICTURES[0]), "What is this?"]}],
    [{"role": "user", "content": ["Look:", Image(PICTURES[1]), Image(PICTURES[0])]}],
    [{"role": "user", "content": [Video(CLIP), "What moves?"]}],
    [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sky": "clear"}'},
    ],
]
REFUSED: list[Any] = [
    "half \ud800",
    [Image("nowhere.png"), "What is this?"],
    [Image("http://127.0.0.1/cat.png"), "What is this?"],
    [Image(b"no picture"), "What is this?"],
    [Video([]), "What moves?"],
    "say <|image_pad|>",
    "word " * 5000,
    [{"type": "audio", "audio": "x.wav"}],
]


@pytest.fixture(params=["tiny_artifact", "tiny_portable_artifact"])
def model(request: pytest.FixtureRequest) -> Qwen3VL:
    return Qwen3VL.load(request.getfixturevalue(request.param), threads=1, check=False)


def answer(model: Qwen3VL, messages: list[dict[str, Any]], tokens: int = 6) -> str:
    return model.generate(messages, tokens, temperature=0, tools=[TOOL])


def answer_afresh(model: Qwen3VL, messages: list[dict[str, Any]]) -> str:
    fresh = Qwen3VL(model.artifact, threads=1)
    fresh.sessions = model.sessions  # only the graphs, which remember nothing
    return answer(fresh, messages)


@contextmanager
def raise_at_line(number: int, error: BaseException) -> Iterator[list[int]]:
    """Raise an error before a line of the runtime, counted as they are executed; yields how many were."""
    lines = count(1)
    reached = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(RUNTIME):
            return None
        if event == "line":
            reached[0] = next(lines)
            if reached[0] == number:
                sys.settrace(None)
                raise error
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(previous)


def test_refused_messages_leave_no_trace(model: Qwen3VL) -> None:
    """Turns of every kind, each after a message that is refused, and the cache is used all the time."""
    talk: list[dict[str, Any]] = []
    for number, refused in enumerate([*REFUSED, *REFUSED[:2]]):
        with pytest.raises(InputError):
            model.generate([*talk, {"role": "user", "content": refused}], 6, temperature=0)
        question = [*talk, *ACCEPTED[number % len(ACCEPTED)]]
        text = answer(model, question)
        assert text == answer_afresh(model, question)
        talk = [*question, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")], ids=repr)
def test_an_error_at_any_line_is_followed_by_the_same_answer(model: Qwen3VL, error: BaseException) -> None:
    talk: list[dict[str, Any]] = [*ACCEPTED[1]]
    talk += [{"role": "assistant", "content": answer(model, talk)}, *ACCEPTED[3]]
    expected = answer_afresh(model, talk)

    def begin() -> None:
        model.conversation.forget()
        answer(model, talk[:1])

    begin()
    assert answer(model, talk) == expected
    begin()
    with raise_at_line(0, error) as reached:
        answer(model, talk)
    rng = np.random.default_rng(len(repr(error)))
    for line in sorted(rng.integers(1, reached[0], 8).tolist()):
        begin()
        with raise_at_line(line, error), pytest.raises((type(error), InputError)):  # a template's own error, in one
            answer(model, talk)
        assert answer(model, talk) == expected, f"after {error!r} at line {line}"


def test_an_interrupt_while_buffers_grow(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph holds addresses of buffers, and some of those were replaced and freed."""
    model = Qwen3VL.load(tiny_artifact, threads=1, check=False)
    talk = [{"role": "user", "content": "nine " * 70}]
    expected = answer_afresh(model, talk)
    zeros = np.zeros
    for calls in (1, 2, 5):
        model.conversation.forget()
        answer(model, talk[:1], 1)
        made = count(1)

        def interrupted(*arguments: Any, made: Iterator[int] = made, calls: int = calls) -> Any:
            if next(made) == calls:
                raise KeyboardInterrupt
            return zeros(*arguments)

        cache = model.conversation._cache
        assert cache is not None
        longer = cache.length + 512
        with monkeypatch.context() as patch:
            patch.setattr("qwen3vl_export.runtime.cache.np.zeros", interrupted)
            with pytest.raises(KeyboardInterrupt):
                cache.reserve(longer)  # type: ignore[union-attr]
        assert answer(model, talk) == expected
        assert len({buffer.shape for buffer in cache.buffers}) == 1  # type: ignore[union-attr]


def test_keys_and_values_of_a_failed_step_are_not_kept(model: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that reads the first token of the answer fails, and the next prompt has that token, too."""
    decode = generate_module.decode
    calls = count(1)

    def decode_to_nan(sessions: Any, embeds: Any, mask: Any, positions: Any, cache: Any, keep: int = 0) -> Any:
        logits = decode(sessions, embeds, mask, positions, cache, keep)
        if next(calls) != 2:
            return logits
        for array in cache.buffers if isinstance(cache, SharedCache) else cache.arrays:
            array[:, :, cache.length - 1] = np.nan
        return np.full_like(logits, np.nan)

    talk = ACCEPTED[1]
    begun = model.stream(talk, 8, temperature=0, tools=[TOOL])
    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "decode", decode_to_nan)
        with pytest.raises(ArtifactError, match="not numbers"):
            begun.read()
    assert begun.tokens == 1 and begun.text
    again = [*talk, {"role": "assistant", "content": begun.text}, *ACCEPTED[0]]
    assert answer(model, again) == answer_afresh(model, again)


def test_a_closed_answer_gives_its_cache_back(model: Qwen3VL) -> None:
    talk = ACCEPTED[1]
    begun = model.stream(talk, 8, temperature=0)
    next(begun)
    assert model.conversation._cache is None
    begun.close()
    assert model.conversation._cache is not None and begun.finish_reason is None
    assert answer(model, talk) == answer_afresh(model, talk)
