"""Opening a checkpoint: which names are directories, files that are not what they seem, and whose licence it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_tests.fixtures import forms_table
from parity_tests.fixtures.paths import TINY
from qwen3vl_export.errors import CheckpointError
from qwen3vl_export.exporter import checkpoint as checkpoints
from qwen3vl_export.exporter.checkpoint import open_checkpoint, open_repository

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "models" / "my tiny"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The repositories and revisions that are asked for; each of them is the tiny checkpoint."""
    seen: list[tuple[str, str]] = []

    def download(source: str, revision: str, *patterns: object) -> tuple[Path, str]:
        seen.append((source, revision))
        return TINY, "c" * 40

    monkeypatch.setattr(checkpoints, "download", download)
    return seen


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


SPOILED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights are a pointer": (
        "model.safetensors",
        lambda path: path.write_text(POINTER),
        "a Git LFS pointer in place of the file. Run git lfs pull there",
    ),
    "tokenizer is a pointer": (
        "tokenizer.json",
        lambda path: path.write_text(POINTER),
        "a Git LFS pointer in place of the file",
    ),
    "weights link to nothing": ("model.safetensors", replace_by_link, "a link to nothing. Copy the file itself"),
    "template links to nothing": ("chat_template.jinja", replace_by_link, "a link to nothing. Copy the file itself"),
    "config has a byte order mark": (
        "config.json",
        lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
        "starts with a byte order mark, which no JSON reader takes. Save it as UTF-8",
    ),
    "tokenizer settings in UTF-16": (
        "tokenizer_config.json",
        lambda path: path.write_text(path.read_text(), "utf-16"),
        "starts with a byte order mark",
    ),
}


@pytest.mark.parametrize("form", SPOILED)
def test_a_file_in_name_only_is_refused_when_opened(copy: Path, form: str) -> None:
    name, spoil, expected = SPOILED[form]
    spoil(copy / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(copy))
    assert str(caught.value).startswith(f"{copy / name}: {expected}")
    assert "\n" not in str(caught.value)
    forms_table.refused(forms_table.FILES, form, str(caught.value), copy)


def test_links_to_weights_are_read_and_links_to_nothing_passed_over(copy: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in copy.iterdir():
        if file.suffix == ".safetensors":
            (linked / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, linked / file.name)
    (linked / "LICENSES").mkdir()
    (linked / "LICENSE-2").symlink_to("nowhere")
    opened = open_checkpoint(str(linked))
    assert {path.name for path in opened.files} == {path.name for path in copy.iterdir()} - {"LICENSE", "README.md"}
    assert [path.name for path in opened.licences] == ["LICENSE"]
    assert opened.provenance() == {**open_checkpoint(str(TINY)).provenance(), "source": "linked"}


@pytest.mark.parametrize("source", ["models/my-tiny", "models/tinny", "./models/tinny", "models/nothing like it"])
def test_a_mistyped_directory_is_not_a_repository(
    copy: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]], source: str
) -> None:
    monkeypatch.chdir(copy.parent.parent)
    with pytest.raises(CheckpointError, match=f"{Path(source)}: no such checkpoint directory") as caught:
        open_checkpoint(source)
    assert asked == []
    assert ("Did you mean models/my tiny?" in str(caught.value)) is ("tiny" in source or "tinny" in source)
    assert ("A repository is hf://" in str(caught.value)) is source.startswith(("models/my-tiny", "models/tinny"))


@pytest.mark.parametrize("parent", ["a file", "a link to itself", "a link to nothing"])
def test_what_lies_under_no_directory_is_not_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]], parent: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if parent == "a file":
        Path("models").touch()
    else:
        Path("models").symlink_to("models" if parent == "a link to itself" else "nowhere")
    with pytest.raises(CheckpointError, match="models/tiny: no such checkpoint directory"):
        open_checkpoint("models/tiny")
    assert asked == []


def test_a_repository_can_be_named_so_that_it_is_never_a_directory(
    copy: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]]
) -> None:
    monkeypatch.chdir(copy.parent.parent)
    open_checkpoint("org/name")
    open_checkpoint("hf://models/tinny")
    open_checkpoint("hf://org/name@v2")
    opened = open_repository("models/tinny", "b" * 40)  # as a recipe names it
    assert asked == [("org/name", "main"), ("models/tinny", "main"), ("org/name", "v2"), ("models/tinny", "b" * 40)]
    assert (opened.source, opened.revision) == ("models/tinny", "c" * 40)
    with pytest.raises(CheckpointError, match="hf://no such name: is not the name of a repository"):
        open_checkpoint("hf://no such name")


CARDS = {
    "published": ("---\nlicense: apache-2.0\npipeline_tag: x\n---\n\n# Card", {"license": "apache-2.0"}),
    "byte order mark, CRLF": ("\ufeff---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
    "other": (
        "---\nlicense: other\nlicense_name: nvidia\nlicense_link: https://x.y/z\nlanguage: [en]\n---\n",
        {"license": "other", "license_name": "nvidia", "license_link": "https://x.y/z"},
    ),
    "no front matter": ("# Card\n---\nlicense: mit\n---\n", {}),
    "no end": ("---\nlicense: mit\n", {}),
    "not YAML": ("---\nlicense: [\n---\n", {}),
    "not text": ("---\nlicense: [mit, other]\n---\n", {}),
    "empty": ("", {}),
}


@pytest.mark.parametrize(("card", "licence"), CARDS.values(), ids=CARDS)
def test_the_licence_is_that_of_the_model_card_if_there_is_no_file(
    copy: Path, card: str, licence: dict[str, str]
) -> None:
    (copy / "README.md").write_bytes(card.encode())
    assert "licence" not in open_checkpoint(str(copy)).provenance()
    (copy / "LICENSE").unlink()
    assert open_checkpoint(str(copy)).provenance().get("licence", {}) == licence
