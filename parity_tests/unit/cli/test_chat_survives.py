"""A conversation survives whatever a question, a picture or an answer does; answers that are drawn can be repeated."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from parity_tests.fixtures.answers import END, TOKENIZER, always_answer
from parity_tests.fixtures.commands import invoke
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.chat.line import base_name, parse_line
from qwen3vl_export.cli.main import app
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import Qwen3VL, generate, sampling
from qwen3vl_export.runtime.generate import Step

GREEDY = ("--max-new-tokens", 4, "--temperature", 0)
ERRORS = [KeyError("a bug"), RuntimeError("\n"), MemoryError(), UnicodeError("x"), OSError(5, "x"), InputError("x"),
          RecursionError(), AssertionError()]  # fmt: skip


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were answered."""
    noted: list[str] = []
    answer = Qwen3VL.answer

    def note_prompt(self: Qwen3VL, prepared: Any, *arguments: Any) -> Any:
        noted.append(prepared.texts[0])
        return answer(self, prepared, *arguments)

    monkeypatch.setattr(Qwen3VL, "answer", note_prompt)
    return noted


def answers(printed: str) -> list[str]:
    """The answers of a chat."""
    return re.findall(r"> ([^>\n]*)\n[^\n]*first token", printed)


def spell(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the model answer with these texts in turn, letter by letter: no added token is generated as such."""
    waiting = iter(texts)

    def generate_steps(*_: Any, **__: Any) -> Iterator[Step]:
        for token in [*TOKENIZER.encode_plain(next(waiting)), END]:
            yield Step(np.array([token]), np.zeros((1, 4), np.float32), np.ones(1, np.bool_))

    monkeypatch.setattr(Qwen3VL, "generate_steps", generate_steps)


@pytest.mark.parametrize("where", ["prepare", "features", "decode"])
def test_whatever_fails_the_conversation_is_as_before(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str], where: str
) -> None:
    undisturbed = invoke("chat", tiny_artifact, *GREEDY, typed="What is 2+3?\nAnd 3+3?\n")
    expected = prompts.copy()
    prompts.clear()
    owner: Any = generate if where == "decode" else Qwen3VL
    function, stream = getattr(owner, where), Qwen3VL.stream
    failing: list[Exception] = []

    def note_question(self: Qwen3VL, content: Any, **settings: Any) -> Any:
        question = content[-1]["content"][-1]
        failing[:] = [ERRORS[int(question.removeprefix("Fail "))]] if question.startswith("Fail") else []
        return stream(self, content, **settings)

    def fail(*arguments: Any, **options: Any) -> Any:
        if failing:
            raise failing[0]
        return function(*arguments, **options)

    monkeypatch.setattr(Qwen3VL, "stream", note_question)
    monkeypatch.setattr(owner, where, fail)
    failures = "".join(f"Fail {number}\n" for number in range(len(ERRORS)))
    result = invoke("chat", tiny_artifact, *GREEDY, typed=f"What is 2+3?\n{failures}And 3+3?\n")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert len(lines) == len(ERRORS) and all(line.startswith("error: ") for line in lines)
    assert [prompt for prompt in prompts if "Fail" not in prompt] == expected
    assert answers(result.stdout) == answers(undisturbed.stdout)


def test_what_is_typed_may_be_no_text_and_no_url(tiny_artifact: Path, prompts: list[str]) -> None:
    typed = b"caf\xe9?\nhttp://[::1/cat.png what?\n/image http://[x].png\n/image a\0b.png\nWhat is 2+3?\n"
    result = CliRunner().invoke(app, ["chat", str(tiny_artifact), *map(str, GREEDY)], input=typed)
    assert result.exit_code == 0 and result.stdout.count("tokens of context") == len(prompts) == 1
    assert "half of a surrogate pair" in result.stderr and len(result.stderr.splitlines()) == 4


def test_a_url_that_cannot_be_parsed_still_has_a_name() -> None:
    assert base_name("http://[::1/a%20cat.png?size=1#top") == "a cat.png"
    assert [item.name for item in parse_line("Look: https://[/cat.png").references] == ["cat.png"]


@pytest.mark.parametrize(
    "spelled", ["say <|image_pad|>", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>']
)
def test_an_answer_that_no_question_could_follow_is_no_part_of_the_conversation(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str], spelled: str
) -> None:
    spell(monkeypatch, "five", spelled, "six")
    result = invoke("chat", tiny_artifact, typed="What is 2+3?\nBreak it.\nAnd 3+3?\n")
    assert result.exit_code == 0 and "this answer cannot be part of the conversation" in result.stderr
    assert prompts[2].count("user\n") == 2 and "Break it" not in prompts[2] and "six" in result.stdout


def test_an_answer_may_spell_any_token_where_text_is_plain(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str]
) -> None:
    spell(monkeypatch, "say <|image_pad|>", "six")
    result = invoke("chat", tiny_artifact, "--plain-text", typed="Say <|image_pad|>\nAnd 3+3?\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert prompts[1].count("<|image_pad|>") == 2


# Answers that are drawn.


def test_a_chat_says_its_seed_and_can_be_repeated(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = itertools.count(20260)  # each run of this test draws the same answers
    monkeypatch.setattr(sampling.secrets, "randbelow", lambda limit: next(seeds))
    options = ("chat", tiny_artifact, "--max-new-tokens", 6, "--temperature", 9)
    typed = "What is 2+3?\nWhat is 2+3?\n/reset\nWhat is 2+3?\n"
    first = invoke(*options, typed=typed)
    (line,) = first.stdout.splitlines()[:1]
    seed = re.search(r"tiny  answers are drawn with temperature 9.0, .*seed (\d+); name pictures", line)
    again = re.search(r"forgotten; seed (\d+)", first.stdout)
    assert seed and again and seed[1] != again[1]
    assert answers(invoke(*options, "--seed", seed[1], typed=typed).stdout)[:2] == answers(first.stdout)[:2]
    asked = ("run", tiny_artifact, *options[2:], "--prompt", "What is 2+3?", "--seed")
    assert invoke(*asked, again[1]).stdout.strip() == answers(first.stdout)[2].strip()


def test_a_second_answer_is_drawn_with_the_next_seed(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int | None] = []
    stream = Qwen3VL.stream

    def note_seed(self: Qwen3VL, content: Any, **settings: Any) -> Any:
        seeds.append(settings["seed"])
        return stream(self, content, **settings)

    monkeypatch.setattr(Qwen3VL, "stream", note_seed)
    options = ("chat", tiny_artifact, "--max-new-tokens", 2)
    typed = "One?\nhalf <|image_pad|>\nTwo?\n/reset\nOne?\n"
    invoke(*options, "--temperature", 1, "--seed", 7, typed=typed)
    assert seeds == [7, 8, 8, 7]
    seeds.clear()
    assert "drawn" not in invoke(*options, typed="One?\n").stdout and seeds == [None]


def test_run_says_how_to_repeat_a_drawn_answer(tiny_artifact: Path) -> None:
    options = ("run", tiny_artifact, "--prompt", "What is 2+3?", "--temperature", 9, "--max-new-tokens", 4)
    first = invoke(*options)
    seed = re.match(r"the answer is drawn with temperature 9.0, .*seed (\d+)\n", first.stderr)
    assert seed and invoke(*options, "--seed", seed[1]).stdout == first.stdout


def test_run_says_why_an_answer_ended_early(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("run", tiny_artifact, "--prompt", "Hi")
    assert invoke(*options, "--max-new-tokens", 1).stderr == "cut at the token limit\n"
    always_answer(monkeypatch, "no, " * 2000)
    ended = invoke(*options)
    assert ended.stderr == "ended because it repeats itself\n" and len(ended.stdout) < len("no, " * 200)
    assert invoke(*options, "--no-end-loops").stdout.count("no, ") == 2000
    assert "ended because it repeats itself, first token" in invoke("chat", tiny_artifact, typed="Hi\n").stdout


def test_special_tokens_are_printed_on_request(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(250,200),(800,900)<|box_end|>"
    always_answer(monkeypatch, text)
    out = tiny_artifact.parent / "never-written.png"
    asked = ("run", tiny_artifact, "--image", PHOTOGRAPH, "--prompt", "Where?")
    assert invoke(*asked).stdout == "cat(250,200),(800,900)\n"
    assert invoke(*asked, "--keep-special-tokens").stdout == f"{text}\n"
    assert "--keep-special-tokens" in invoke(*asked, "--draw", out).stderr and not out.exists()
    assert text in invoke("chat", tiny_artifact, "--keep-special-tokens", typed="Where?\n").stdout


def test_valid_boxes_are_drawn_and_the_others_reported(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [{"bbox_2d": [250, 200, 800, 900]}, {"bbox_2d": [0, 0, 9000, 9]}, {"point_2d": [1, 2]}]
    always_answer(monkeypatch, json.dumps(boxes))
    out = tmp_path / "out.png"
    reason = "not drawn: bbox_2d [0, 0, 9000, 9]: outside 0 to 1000\n"
    result = invoke("run", tiny_artifact, "--image", PHOTOGRAPH, "--prompt", "Where?", "--draw", out)
    said = f"{PHOTOGRAPH}: 126 tokens\n{out}: 2 drawn\n{reason}"
    assert (result.exit_code, result.stderr) == (0, said) and out.exists()
    out.unlink()
    chat = invoke("chat", tiny_artifact, typed=f"{PHOTOGRAPH} Where?\n/draw {out}\n")
    assert f"{out}: 2 drawn\n{reason}" in chat.stdout and out.exists()
