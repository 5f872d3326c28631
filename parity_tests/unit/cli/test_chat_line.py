"""Pictures and videos named in a line, and conversations as files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from qwen3vl_export.chat.line import parse_line
from qwen3vl_export.chat.transcript import Attachment, Turn, save
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import Answer, Image, Limits, Picture, Video
from qwen3vl_export.runtime.prompts.messages import split_media

from ...fixtures.answers import STOP_IDS, TOKENIZER, make_steps


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: cat.jpg, dog.PNG, `two words.webp`, clip.mp4."""
    for name in ("cat.jpg", "dog.PNG", "two words.webp", "clip.mp4"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "text", "sources"),
    [
        ("What is 2+3?", "What is 2+3?", []),
        ("cat.jpg What is this?", "What is this?", ["cat.jpg"]),
        ("What is this? ./cat.jpg", "What is this?", ["./cat.jpg"]),
        ("What is in cat.jpg?", "What is in cat.jpg?", ["cat.jpg"]),
        ("Compare cat.jpg and ./dog.PNG, please", "Compare cat.jpg and dog.PNG, please", ["cat.jpg", "./dog.PNG"]),
        ("cat.jpg dog.PNG", "", ["cat.jpg", "dog.PNG"]),
        ("'two words.webp' what?", "what?", ["two words.webp"]),
        ('what? "two words.webp"', "what?", ["two words.webp"]),
        ("two\\ words.webp what?", "what?", ["two words.webp"]),
        ("Look at 'two words.webp' now", "Look at two words.webp now", ["two words.webp"]),
        ("clip.mp4 What moves?", "What moves?", ["clip.mp4"]),
        ("https://example.org/a/cat.JPG?size=9 what?", "what?", ["https://example.org/a/cat.JPG?size=9"]),
        ("Is (https://example.org/cat.png) one?", "Is (cat.png) one?", ["https://example.org/cat.png"]),
        ("see https://example.org/ or cat", "see https://example.org/ or cat", []),
        ("it's a cat, isn't it?", "it's a cat, isn't it?", []),
        ("nowhere/cat.jpg what?", "what?", ["nowhere/cat.jpg"]),  # reported when it is opened
        ("'nowhere.jpg' what?", "what?", ["nowhere.jpg"]),
        ("a.b.c .jpg what.jpgs", "a.b.c .jpg what.jpgs", []),
    ],
)
def test_pictures_anywhere_in_a_line(line: str, text: str, sources: list[str]) -> None:
    parsed = parse_line(line)
    assert (parsed.text, [item.source for item in parsed.references], parsed.missing) == (text, sources, ())
    assert [item.is_video for item in parsed.references] == [source.endswith("mp4") for source in sources]


def test_a_name_of_no_file_is_a_word() -> None:
    parsed = parse_line("Rename it to new.jpg, not cat.jpg.")
    assert parsed.text == "Rename it to new.jpg, not cat.jpg." and parsed.missing == ("new.jpg",)
    assert [item.source for item in parsed.references] == ["cat.jpg"]


def test_the_home_directory(folder: Path) -> None:
    (reference,) = parse_line("~/cat.jpg what?").references
    assert reference.source == str(folder / "cat.jpg") and reference.name == "cat.jpg"


def turn(text: str, question: str = "What?", thinking: bool = False, stopped: bool = False) -> Turn:
    answer = Answer(make_steps(text), TOKENIZER, STOP_IDS, Limits(), time.perf_counter(), thinking, prompt_tokens=7)
    answer.read()
    picture = Picture(np.zeros((4, 8), np.float32), (1, 2, 2), "", "", False)
    image = PIL.Image.new("RGB", (2, 2))
    attachments = (
        Attachment("cat.jpg", "/my/cat.jpg", picture, image),
        Attachment("clip.mp4", "/my/clip.mp4", picture, None),
    )
    return Turn(attachments, question, answer, stopped)


def test_a_transcript_to_read(folder: Path) -> None:
    save(folder / "talk.md", "tiny", [turn("hm</think>a cat", thinking=True), turn("a d", stopped=True)])
    question = "## Question\n\n![cat.jpg](</my/cat.jpg>)\n\n[clip.mp4](</my/clip.mp4>)\n\nWhat?\n\n## Answer\n\n"
    expected = f"# tiny\n\n{question}> hm\n\na cat\n\n{question}a d\n\n*stopped*\n"
    assert (folder / "talk.md").read_text() == expected


def test_a_transcript_to_go_on_with(folder: Path) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    save(folder / "talk.json", "tiny", [turn("a cat"), turn(call, stopped=True)])
    saved = json.loads((folder / "talk.json").read_text())
    user, assistant, _, caller = saved["messages"]
    assert saved["artifact"] == "tiny"
    assert user["content"] == [
        {"type": "image", "image": "/my/cat.jpg"},
        {"type": "video", "video": "/my/clip.mp4"},
        {"type": "text", "text": "What?"},
    ]
    figures, of_caller = saved["figures"]
    assert assistant == {"role": "assistant", "content": "a cat"}
    assert (figures["finish_reason"], figures["prompt_tokens"]) == ("stop", 7) and figures["tokens"] > 1
    assert caller["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert of_caller["finish_reason"] == "interrupted"
    assert split_media(saved["messages"])[1] == 2 * [Image("/my/cat.jpg"), Video("/my/clip.mp4")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("talk.txt", "unknown format"), ("no/talk.md", "cannot be written"), ("here.md", "already exists")],
)
def test_where_nothing_can_be_saved(folder: Path, name: str, message: str) -> None:
    (folder / "here.md").write_text("mine")
    with pytest.raises(InputError, match=message):
        save(Path(name), "tiny", [turn("a cat")])
    assert (folder / "here.md").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
