"""`chat` as a person uses it: at a terminal, with pictures by name, Ctrl-C, errors and commands."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pexpect
import PIL.Image
import pytest

from qwen3vl_export.chat import Chat
from qwen3vl_export.chat.screen import format_figures, print_parts
from qwen3vl_export.console import Terminal as Screen
from qwen3vl_export.runtime import Image, Qwen3VL
from qwen3vl_export.runtime.generate import Step
from qwen3vl_export.runtime.prompts.reply import AnswerPart

from ...fixtures.answers import always_answer
from ...fixtures.commands import invoke
from ...fixtures.interrupts import children_interruptible
from ...fixtures.paths import ROOT
from ...harness.cases.picture_kinds import PHOTOGRAPH

COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def answer(tiny_artifact: Path) -> str:
    return Qwen3VL.load(tiny_artifact).generate([Image(PHOTOGRAPH), "What is this?"], max_new_tokens=8)


class Terminal:
    """The chat in a terminal of its own."""

    def __init__(self, artifact: Path, *options: str, interruptible: bool = True) -> None:
        arguments = ["-m", "qwen3vl_export", "chat", str(artifact), *options]
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        with children_interruptible(interruptible):
            self.process = pexpect.spawn(
                sys.executable, arguments, encoding="utf-8", dimensions=(40, 120), timeout=120, env=environment
            )
        self.until_prompt()

    def until_prompt(self) -> str:
        """What was printed until the prompt appeared, without colours."""
        self.process.expect("> $")
        return COLOURS.sub("", self.process.before)

    def type(self, line: str) -> str:
        self.process.sendline(line)
        return self.until_prompt()


@pytest.fixture
def terminal(tiny_artifact: Path) -> Iterator[Terminal]:
    chat = Terminal(tiny_artifact, "--max-new-tokens", "8")
    yield chat
    chat.process.close(force=True)


def test_a_conversation(terminal: Terminal, answer: str, tmp_path: Path) -> None:
    printed = terminal.type(f"{PHOTOGRAPH} What is this?")
    assert "chelsea.png: 451x300" in printed and answer in printed
    assert re.search(r"first token after \d+\.\d\d s, then [\d.]+ tokens/s, \d+ of 4096 tokens of context", printed)
    assert "no such image file" in terminal.type("nowhere/cat.png What is this?")
    assert "no such file here" in terminal.type("What is cat.png?")
    assert "tokens of context" in terminal.type("What is \\\r2+3?")  # a line that is continued
    saved = terminal.type(f"/save {tmp_path / 'talk.json'}")
    assert "3 questions and answers" in " ".join(saved.split())  # a long path makes the line break
    assert "forgotten" in terminal.type("/reset")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in messages[1:2]] == [answer]
    assert messages[0]["content"][0] == {"type": "image", "image": str(PHOTOGRAPH)}
    assert messages[-2]["content"] == [{"type": "text", "text": "What is \n2+3?"}]
    terminal.process.sendline("/quit")
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0


def test_ctrl_c_and_ctrl_d_at_the_prompt(terminal: Terminal) -> None:
    terminal.process.send("half a question")
    terminal.process.expect("half a question")  # readline listens
    terminal.process.sendintr()
    assert "leave with /quit or Ctrl-D" in terminal.until_prompt()
    assert "no such command" in terminal.type("/dance")
    terminal.process.sendeof()
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0


@pytest.mark.parametrize("interruptible", [True, False], ids=["sigint-default", "sigint-ignored"])
def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(tiny_artifact: Path, answer: str, interruptible: bool) -> None:
    """At temperature 1000 the model never ends; what was said so far stays part of the conversation."""
    options = ("--max-new-tokens", "3000", "--temperature", "1000", "--top-k", "0", "--seed", "1")
    chat = Terminal(tiny_artifact, *options, interruptible=interruptible)
    chat.process.sendline(f"{PHOTOGRAPH} Tell me all.")
    chat.process.expect("chelsea.png: 451x300")
    chat.process.expect(r"[^\x00-\x7f\s]{3}", timeout=120)  # nonsense has begun
    chat.process.sendintr()
    assert "stopped, first token after" in chat.until_prompt()
    chat.process.sendline("/reset")
    chat.process.expect("forgotten")
    chat.process.close(force=True)


def test_names_are_completed(terminal: Terminal) -> None:
    terminal.process.send(f"/ima\t{str(PHOTOGRAPH)[:-5]}\t")
    terminal.process.send("\r")
    assert "451x300" in terminal.until_prompt()


# The same without a terminal: what a script pipes in.


def test_without_a_terminal_ctrl_c_stays_ignored(tiny_artifact: Path) -> None:
    with children_interruptible(False):
        invoke("chat", tiny_artifact, typed="/quit\n")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_chat_answers_about_a_picture(tiny_artifact: Path, answer: str) -> None:
    typed = f"/image {PHOTOGRAPH}\nWhat is this?\n/quit\nnever read\n"
    result = invoke("chat", tiny_artifact, "--max-new-tokens", 8, typed=typed)
    assert result.exit_code == 0
    assert "chelsea.png: 451x300" in result.stdout and "chelsea.png > " in result.stdout
    assert answer in result.stdout and "tokens/s" in result.stdout
    assert result.stderr == ""


def test_an_error_does_not_end_the_chat(tiny_artifact: Path, answer: str) -> None:
    typed = (
        f"/image nowhere.png\n/image\n/video nowhere.mp4\n/dance\nsay <|image_pad|>\n\n/help\n/draw out.png\n"
        f"/save x.txt\nhttp://127.0.0.1/cat.png what?\n/image '{PHOTOGRAPH}'\nWhat is this?\n/draw out.png\n"
    )
    result = invoke("chat", tiny_artifact, "--max-new-tokens", 8, typed=typed)
    assert result.exit_code == 0  # the end of the input ends the chat
    messages = ("no such image file", "/image needs a file", "no such video file", "/dance: no such command",
            "must not contain these tokens", "there is no answer yet", "x.txt: unknown format",
            "127.0.0.1 is not a public address", "names no boxes")  # fmt: skip
    assert len(result.stderr.splitlines()) == len(messages)
    for line, message in zip(result.stderr.splitlines(), messages, strict=True):
        assert message in line
    assert "Ctrl-C stops an answer" in result.stdout
    assert answer in result.stdout


def test_too_long_a_question_says_by_how_much(tiny_artifact: Path) -> None:
    result = invoke("chat", tiny_artifact, "--max-new-tokens", 4, typed=f"{PHOTOGRAPH}\n{'9 ' * 5000}\nWhat is 2+3?\n")
    assert re.search(r"the context holds 4096: \d+ over", result.stderr)
    assert "chelsea.png: dropped" in result.stdout and "tokens of context" in result.stdout


def test_logits_that_are_no_numbers_leave_the_chat_alive(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3vl_export.runtime import generate

    decode = generate.decode
    broken = iter([True])

    def decode_to_nan(*arguments: Any, **options: Any) -> Any:
        logits = decode(*arguments, **options)
        return np.full_like(logits, np.nan) if next(broken, False) else logits

    monkeypatch.setattr(generate, "decode", decode_to_nan)
    result = invoke("chat", tiny_artifact, "--max-new-tokens", 4, typed="What is 2+3?\nWhat is 2+3?\n")
    assert "the decoder's logits are not numbers (NaN) at step 0" in result.stderr
    assert result.exit_code == 0 and result.stdout.count("tokens of context") == 1


def test_the_conversation_grows_and_is_forgotten(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    answer = Qwen3VL.answer

    def note_prompt(self: Qwen3VL, prepared: Any, *arguments: Any) -> Any:
        prompts.append(prepared.texts[0])
        return answer(self, prepared, *arguments)

    monkeypatch.setattr(Qwen3VL, "answer", note_prompt)
    typed = f"{PHOTOGRAPH} What is 2+3?\nAnd 3+3?\n/reset\nWhat is 1+1?\n"
    assert invoke("chat", tiny_artifact, "--max-new-tokens", 4, typed=typed).exit_code == 0
    first, second, third = prompts
    assert second.startswith(first) and second.count("<|im_start|>user") == 2
    assert third.count("<|im_start|>user") == 1 and "<|image_pad|>" not in third


def test_an_interrupted_answer_is_kept(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Qwen3VL.generate_steps
    beginning = Qwen3VL.load(tiny_artifact).generate("Describe.", max_new_tokens=2, temperature=0)

    def generate_interrupted(*arguments: Any, **options: Any) -> Iterator[Step]:
        yield from islice(steps(*arguments, **options), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Qwen3VL, "generate_steps", generate_interrupted)
    result = invoke("chat", tiny_artifact, typed="Describe.\n/reset\n")
    assert result.exit_code == 0
    assert f"> {beginning}\nstopped, first token" in result.stdout and "forgotten" in result.stdout


def test_boxes_are_drawn_on_the_last_picture(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_answer(monkeypatch, '{"bbox_2d": [250, 200, 800, 900], "label": "cat"}')
    out = tmp_path / "out.png"
    result = invoke("chat", tiny_artifact, typed=f"{PHOTOGRAPH} Where?\n/draw {out}\n")
    assert f"{out}: 1 drawn" in result.stdout and result.stderr == ""
    with PIL.Image.open(out) as drawn:
        assert drawn.size == (451, 300)


def test_a_video_of_frames(tiny_artifact: Path, tmp_path: Path) -> None:
    for index in range(6):
        PIL.Image.new("RGB", (64, 64), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
    result = invoke("chat", tiny_artifact, "--max-new-tokens", 4, typed=f"/video {tmp_path}\nWhat moves?\nAnd now?\n")
    assert "2.2 seconds, 3 pairs of frames" in result.stdout
    assert result.stdout.count("tokens of context") == 2 and result.stderr == ""


def test_the_clipboard(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[Any] = [PIL.Image.new("RGB", (64, 48)), [str(PHOTOGRAPH)], None, NotImplementedError("no xclip")]

    def grab() -> Any:
        item = contents.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr("PIL.ImageGrab.grabclipboard", grab)
    result = invoke("chat", tiny_artifact, typed="/paste\n" * 4)
    assert "clipboard: 64x48" in result.stdout and "chelsea.png: 451x300" in result.stdout
    assert "the clipboard contains no picture" in result.stderr and "cannot be read (no xclip)" in result.stderr


# How an answer looks.


def print_to_text(*parts: AnswerPart) -> str:
    screen = Screen(record=True, force_terminal=True, color_system="truecolor", width=80, file=io.StringIO())
    print_parts(iter(parts), screen, lambda: None)
    return screen.export_text(styles=True)


def test_reasoning_is_dimmed_and_stands_apart() -> None:
    reasoning = [AnswerPart("reasoning", "\nh", 0), AnswerPart("reasoning", "m\n", 0)]
    content = [AnswerPart("content", "\n\n", 1), AnswerPart("content", "a ", 1), AnswerPart("content", "cat\n", 1)]
    tool_call = AnswerPart("tool_call", "\n{}\n", 2)
    assert print_to_text(*reasoning, *content, tool_call) == "\x1b[2mh\x1b[0m\x1b[2mm\x1b[0m\na cat\n\x1b[36m{}\x1b[0m"


def test_an_answer_does_not_steer_the_terminal() -> None:
    text = "[red]:cat:[/red]\x1b]0;x\x07\r\n\x9b1m"
    shown = "[red]:cat:[/red]\\u001b]0;x\\u0007\n\\u009b1m"
    assert print_to_text(AnswerPart("content", text, 0)) == shown
    assert print_to_text(*(AnswerPart("content", letter, 0) for letter in text)).replace("\x1b[0m", "") == shown


def test_the_chat_keeps_to_a_pixel_budget(tiny_artifact: Path) -> None:
    result = invoke("chat", tiny_artifact, "--max-pixels", 20000, typed=f"{PHOTOGRAPH}\n/quit\n")
    assert "chelsea.png: 451x300, 15 tokens" in result.stdout


@pytest.mark.parametrize(
    ("values", "stopped", "line"),
    [
        ({}, False, "first token after 0.50 s, then 20.0 tokens/s, 15 of 100 tokens of context"),
        ({}, True, "stopped, first token after 0.50 s, then 20.0 tokens/s, 15 of 100 tokens of context"),
        ({"tokens_per_second": None, "tokens": 1}, False, "first token after 0.50 s, 11 of 100 tokens of context"),
        ({"finish_reason": "length"}, False, "cut at the token limit, first"),
        ({"finish_reason": "length", "prompt_tokens": 96}, False, "the context is full, first"),
        ({"finish_reason": "time"}, False, "cut at the time limit, first"),
    ],
)
def test_figures(values: dict[str, Any], stopped: bool, line: str) -> None:
    answer = {"finish_reason": "stop", "prompt_tokens": 10, "tokens": 5, "first_token_seconds": 0.5}
    result: Any = SimpleNamespace(**{**answer, "tokens_per_second": 20.0, **values})
    assert format_figures(result, stopped, context=100).startswith(line)


def test_the_help_of_chat_shows_an_example() -> None:
    text = COLOURS.sub("", invoke("chat", "--help").stdout)
    assert "Example:" in text and "qwen3vl-export chat artifacts/tiny" in text


def test_every_command_is_in_the_help(tiny_artifact: Path) -> None:
    from qwen3vl_export.chat import HELP

    commands = Chat(Qwen3VL.load(tiny_artifact), Screen(), {}).commands
    assert {*commands, "/quit"} == set(re.findall(r"\[bold\](/\w+)", HELP))
