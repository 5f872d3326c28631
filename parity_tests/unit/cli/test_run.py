"""`run` on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from parity_tests.fixtures.answers import always_answer
from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.runtime import Image, Qwen3VL


@pytest.fixture(scope="module")
def answer(tiny_artifact: Path) -> str:
    return Qwen3VL.load(tiny_artifact).generate([Image(PHOTOGRAPH), "What is this?"], max_new_tokens=8)


def test_run_prints_the_answer(tiny_artifact: Path, answer: str) -> None:
    options = ("--image", PHOTOGRAPH, "--max-new-tokens", 8)
    result = invoke("run", tiny_artifact, *options, "--prompt", "What is this?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, answer + "\n", f"{PHOTOGRAPH}: 126 tokens\n")
    assert invoke("run", tiny_artifact, *options, "--prompt", "-", typed="What is this?\n").stdout == answer + "\n"


def test_run_keeps_to_a_pixel_budget(tiny_artifact: Path) -> None:
    options = ("run", tiny_artifact, "--image", PHOTOGRAPH, "--prompt", "What is this?", "--max-new-tokens", 1)
    assert f"{PHOTOGRAPH}: 15 tokens\n" in invoke(*options, "--max-pixels", 20000).stderr
    assert f"{PHOTOGRAPH}: 216 tokens\n" in invoke(*options, "--min-pixels", 200704).stderr
    refused = invoke(*options, "--max-pixels", 10**6)
    assert_one_line(refused, "max_pixels is 1000000, the checkpoint allows 4096 to 262144")


def test_run_repeats_with_a_seed(tiny_artifact: Path) -> None:
    options = ("run", tiny_artifact, "--prompt", "What is 2+3?", "--temperature", 9, "--max-new-tokens", 8, "--seed")
    assert invoke(*options, 4).stdout == invoke(*options, 4).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "nowhere.png"), "nowhere.png: no such image file"),
        ((), "there is no question"),
        (("--prompt", "a <|image_pad|>"), "must not contain these tokens"),
    ],
)
def test_run_reports_what_is_wrong(tiny_artifact: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke("run", tiny_artifact, *options)
    assert result.exit_code == 2
    assert result.stdout == "" and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_run_without_an_artifact(tmp_path: Path) -> None:
    result = invoke("run", tmp_path, "--prompt", "Hi")
    assert result.exit_code == 2 and "no manifest.json here" in result.stderr


def test_run_reads_urls_and_videos(tiny_artifact: Path, answer: str, tmp_path: Path) -> None:
    question = ("--prompt", "What is this?", "--max-new-tokens", 8)
    assert invoke("run", tiny_artifact, "--image", f"file://{PHOTOGRAPH}", *question).stdout == answer + "\n"
    refused = invoke("run", tiny_artifact, "--image", "http://127.0.0.1/cat.png", *question)
    assert refused.exit_code == 2 and "127.0.0.1 is not a public address" in refused.stderr
    for index in range(4):
        PIL.Image.new("RGB", (64, 64), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
    assert invoke("run", tiny_artifact, "--video", tmp_path, *question).exit_code == 0


def test_run_ends_at_a_stop_string(tiny_artifact: Path, answer: str) -> None:
    options = ("--image", PHOTOGRAPH, "--prompt", "What is this?", "--max-new-tokens", 8)
    letter = answer[2]
    stopped = invoke("run", tiny_artifact, *options, "--stop", letter, "--stop", "nowhere")
    assert stopped.stdout == answer.partition(letter)[0] + "\n"


def test_run_draws_the_boxes(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = '[{"bbox_2d": [250, 200, 800, 900], "label": "cat"}]'
    always_answer(monkeypatch, boxes)
    out = tmp_path / "out.png"
    result = invoke("run", tiny_artifact, "--image", PHOTOGRAPH, "--prompt", "Where?", "--draw", out)
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        boxes + "\n",
        f"{PHOTOGRAPH}: 126 tokens\n{out}: 1 drawn\n",
    )
    with PIL.Image.open(PHOTOGRAPH) as before, PIL.Image.open(out) as after:
        changed = (np.asarray(before.convert("RGB")) != np.asarray(after)).any(axis=2)
    assert after.size == before.size and changed[60, 113:360].all() and not changed[100:260, 120:350].any()
    assert list(tmp_path.iterdir()) == [out]  # no temporary file is left


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a cat", ("--image", PHOTOGRAPH, "--draw", "out.png"), "the answer names no boxes or points"),
        ('{"bbox_2d": [1, 2]}', ("--image", PHOTOGRAPH, "--draw", "out.png"), "bbox_2d [1, 2]: not 4 numbers"),
        ("a cat", ("--image", PHOTOGRAPH, "--draw", "out.txt"), "out.txt: cannot write this image format"),
        ("a cat", ("--draw", "out.png", "--prompt", "Hi"), "a drawing on 0 pictures"),
        ("a cat", ("--image", PHOTOGRAPH, "--draw", PHOTOGRAPH), "chelsea.png: already exists. Choose another name"),
        ('{"point_2d": [1, 2]}', ("--image", PHOTOGRAPH, "--draw", "no/where/out.png"), "cannot be written"),
        ("a cat", ("--prompt", "Hi", "--tools", "nowhere.json"), "nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_drawn_or_called(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: tuple[Any, ...], message: str
) -> None:
    always_answer(monkeypatch, text)
    result = invoke("run", tiny_artifact, *options)
    assert result.exit_code == 2 and message in result.stderr.splitlines()[-1]
    assert not Path("out.png").exists()


def test_run_prints_tool_calls_as_json(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    prepare = Qwen3VL.prepare

    def note_prompt(self: Qwen3VL, *arguments: Any, **variables: Any) -> Any:
        prepared = prepare(self, *arguments, **variables)
        prompts.append(prepared.texts[0])
        return prepared

    monkeypatch.setattr(Qwen3VL, "prepare", note_prompt)
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "weather", "parameters": {}}}]')
    always_answer(monkeypatch, 'hm <tool_call>\n{"name": "weather", "arguments": {"town": "Bern"}}\n</tool_call>')
    result = invoke("run", tiny_artifact, "--prompt", "Weather?", "--tools", tools)
    assert result.stdout == 'hm \n{"name": "weather", "arguments": {"town": "Bern"}}\n'
    assert '{"type": "function", "function": {"name": "weather", "parameters": {}}}' in prompts[0]
    always_answer(monkeypatch, "<tool_call>{oops</tool_call>")
    broken = invoke("run", tiny_artifact, "--prompt", "Weather?", "--tools", tools)
    assert broken.exit_code == 2 and broken.stdout == "" and "the model's tool call cannot be parsed" in broken.stderr
    tools.write_text("{}")
    assert "not a list of functions" in invoke("run", tiny_artifact, "--prompt", "Weather?", "--tools", tools).stderr


def test_reasoning_goes_to_standard_error(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("", "\n"):
        always_answer(monkeypatch, f"<think>\nhm{end}</think>\n\na cat")
        result = invoke("run", tiny_artifact, "--prompt", "What?")
        assert (result.stdout, result.stderr) == ("a cat\n", "\nhm\n")
