"""docs/runtime.md keeps up with the runtime: its examples run, and it has every setting and command."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from qwen3vl_export.chat import Chat
from qwen3vl_export.cli.run import ANSWER
from qwen3vl_export.console import Terminal
from qwen3vl_export.runtime import Qwen3VL, sampling

from ...fixtures.paths import ROOT
from ...fixtures.videos import moving_frames, write_video

PAGE = (ROOT / "docs" / "runtime.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files the examples name."""
    (tmp_path / "artifacts").mkdir()
    for name in ("tiny", "qwen3-vl-2b-instruct-int8"):  # README.md names a published size
        (tmp_path / "artifacts" / name).symlink_to(tiny_artifact)
    shutil.copy(PHOTOGRAPH, tmp_path / "cat.jpg")
    write_video(tmp_path / "clip.mp4", moving_frames(30))
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate(moving_frames(8)):
        PIL.Image.fromarray(frame).save(tmp_path / "frames" / f"{index}.png")
    monkeypatch.chdir(tmp_path)


def test_the_examples_run_and_print_what_is_shown(folder: None) -> None:
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(PAGE)
    compared = 0
    for (kind, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/runtime.md", "exec"), names)
        if following == "text":
            compared += 1
            assert printed.getvalue().strip() == shown.strip(), code
    assert compared == PAGE.count("```text") > 0
    with PIL.Image.open("boxes.png") as drawn:
        assert drawn.size == (451, 300)


def test_the_example_of_the_readme_runs(folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for kind, code in BLOCK.findall((ROOT / "README.md").read_text("utf-8")) if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "a cat"


def settings() -> set[str]:
    names = {*inspect.signature(Qwen3VL.stream).parameters, *inspect.signature(sampling.override).parameters}
    return names - {"self", "content", "settings", "base"}


def test_the_commands_have_every_setting() -> None:
    assert {*ANSWER, "tools", "chat_template_kwargs"} == settings()  # the last is Python's alone
    assert {"base", *sampling.NAMES} == set(inspect.signature(sampling.override).parameters)


@pytest.mark.parametrize("name", sorted(settings()))
def test_every_setting_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE


def test_every_command_is_documented(tiny_artifact: Path) -> None:
    commands = Chat(Qwen3VL.load(tiny_artifact), Terminal(), {}).commands
    for command in (*commands, "/quit"):
        assert f"`{command}" in PAGE.partition("## The chat")[2]
