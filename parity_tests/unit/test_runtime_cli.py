"""`run` and `chat` on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qwen3vl_export.cli import app
from qwen3vl_export.runtime import Answer, Image, Qwen3VL
from qwen3vl_export.runtime.generate import Step

PHOTO = Path(__file__).parents[1] / "media" / "chelsea.png"


def call(*arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


@pytest.fixture(scope="module")
def answer(tiny_artifact: Path) -> str:
    return Qwen3VL.load(tiny_artifact).generate([Image(PHOTO), "What is this?"], max_new_tokens=8)


def test_run_prints_the_answer(tiny_artifact: Path, answer: str) -> None:
    options = ("--image", PHOTO, "--max-new-tokens", 8)
    done = call("run", tiny_artifact, *options, "--prompt", "What is this?")
    assert (done.exit_code, done.output) == (0, answer + "\n")
    assert call("run", tiny_artifact, *options, "--prompt", "-", typed="What is this?\n").output == answer + "\n"


def test_run_repeats_with_a_seed(tiny_artifact: Path) -> None:
    options = ("run", tiny_artifact, "--prompt", "What is 2+3?", "--temperature", 9, "--max-new-tokens", 8, "--seed")
    assert call(*options, 4).output == call(*options, 4).output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--image", "nowhere.png"), "nowhere.png: no such image file"),
        ((), "nothing was asked"),
        (("--prompt", "a <|image_pad|>"), "must not contain these tokens"),
    ],
)
def test_run_tells_what_is_wrong(tiny_artifact: Path, options: tuple[str, ...], said: str) -> None:
    done = call("run", tiny_artifact, *options)
    assert done.exit_code == 2
    assert done.stdout == "" and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_run_without_an_artifact(tmp_path: Path) -> None:
    done = call("run", tmp_path, "--prompt", "Hi")
    assert done.exit_code == 2 and "no manifest.json here" in done.stderr


def test_chat_answers_about_a_picture(tiny_artifact: Path, answer: str) -> None:
    done = call(
        "chat", tiny_artifact, "--max-new-tokens", 8, typed=f"/image {PHOTO}\nWhat is this?\n/quit\nnever read\n"
    )
    assert done.exit_code == 0
    assert f"{PHOTO}: 451x300" in done.output
    assert answer in done.output and "tokens/s" in done.output
    assert done.stderr == ""


def test_an_error_does_not_end_the_chat(tiny_artifact: Path, answer: str) -> None:
    typed = f"/image nowhere.png\n/image\n/dance\nsay <|image_pad|>\n\n/help\n/image '{PHOTO}'\nWhat is this?\n"
    done = call("chat", tiny_artifact, "--max-new-tokens", 8, typed=typed)
    assert done.exit_code == 0  # the end of the input ends the chat
    assert "no such image file" in done.stderr
    assert "/image needs a file" in done.stderr
    assert "/dance: no such command" in done.stderr
    assert "must not contain these tokens" in done.stderr
    assert len(done.stderr.splitlines()) == 4
    assert "Ctrl-C stops an answer" in done.output
    assert answer in done.output


def test_the_conversation_grows_and_is_forgotten(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    answer = Qwen3VL.answer

    def noted(self: Qwen3VL, prepared: Any, *arguments: Any) -> Answer:
        prompts.append(prepared.texts[0])
        return answer(self, prepared, *arguments)

    monkeypatch.setattr(Qwen3VL, "answer", noted)
    typed = "What is 2+3?\nAnd 3+3?\n/reset\nWhat is 1+1?\n"
    assert call("chat", tiny_artifact, "--max-new-tokens", 4, typed=typed).exit_code == 0
    first, second, third = prompts
    assert second.startswith(first) and second.count("<|im_start|>user") == 2
    assert third.count("<|im_start|>user") == 1


def test_ctrl_c_stops_the_answer_only(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Qwen3VL.generate_steps
    beginning = Qwen3VL.load(tiny_artifact).generate("Describe.", max_new_tokens=3, temperature=0)

    def interrupted(*arguments: Any, **settings: Any) -> Iterator[Step]:
        yield from islice(steps(*arguments, **settings), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Qwen3VL, "generate_steps", interrupted)
    done = call("chat", tiny_artifact, typed="Describe.\n/reset\n")
    assert done.exit_code == 0
    assert f"> {beginning}\n" in done.output and "forgotten" in done.output
