"""docs/retrieval.md keeps up with the runtime: its examples run, and it has every argument and every head."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from parity_tests.harness.cases.gallery import gallery
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH, draw_picture
from qwen3vl_export.contract import DECODER_OUTPUTS
from qwen3vl_export.runtime import Image, Qwen3VL

from ...fixtures.paths import ROOT

PAGE = (ROOT / "docs" / "retrieval.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files the examples name."""
    (tmp_path / "artifacts").mkdir()
    for name in ("tiny-embedding", "tiny-reranker"):
        (tmp_path / "artifacts" / name).symlink_to(built(name))
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        draw(tmp_path / "pictures" / f"{index}.png")
    shutil.copy(PHOTOGRAPH, tmp_path / "cat.jpg")
    shutil.copy(tmp_path / "pictures" / "0.png", tmp_path / "dog.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pictures"


def draw(path: Path) -> None:
    picture = draw_picture("drawn 96x64", path.name)
    assert isinstance(picture, PIL.Image.Image)
    picture.save(path)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "docs/retrieval.md", "exec"), names)
    return names


def test_the_first_example_runs(folder: Path) -> None:
    names = run(BLOCKS[0])
    assert names["pictures"].shape == (2, 128) and names["scores"].shape == (3,)


def test_the_search_finds_what_is_closest_and_embeds_a_picture_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run(BLOCKS[1])
    model: Qwen3VL = names["model"]
    vectors = model.embed([Image(folder / f"{index}.png") for index in range(4)])
    (wanted,) = model.embed(["a red circle"], instruction="Retrieve images relevant to the user's query.")
    best = np.argsort(-vectors @ wanted)[:3]
    assert [name for name, _ in names["found"]] == [f"{index}.png" for index in best]
    assert np.allclose([cosine for _, cosine in names["found"]], (vectors @ wanted)[best], atol=1e-6)
    lengths: list[int] = []

    def embed(inputs: list[Any], **options: Any) -> Any:
        lengths.append(len(inputs))
        return Qwen3VL.embed(model, inputs, **options)

    monkeypatch.setattr(model, "embed", embed)
    draw(folder / "new.png")
    names["search"](model, folder, Image(folder / "new.png"))
    assert lengths == [1, 1]


def test_the_search_finds_the_right_picture_for_nine_of_ten_captions(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    pictures = gallery()
    for index, picture in enumerate(pictures):
        picture.image.save(folder / f"{index}.png")
    names = run(BLOCKS[1])
    best = [names["search"](names["model"], folder, picture.caption, 1)[0][0] for picture in pictures]
    assert sum(name == f"{index}.png" for index, name in enumerate(best)) >= 0.9 * len(pictures)


@pytest.mark.parametrize("name", sorted({*inspect.signature(Qwen3VL.embed).parameters} - {"self", "inputs"}))
def test_every_argument_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE


def test_rerank_has_no_other_arguments() -> None:
    others = {*inspect.signature(Qwen3VL.rerank).parameters} - {*inspect.signature(Qwen3VL.embed).parameters}
    assert others == {"query", "documents"}


@pytest.mark.parametrize("head", DECODER_OUTPUTS)
def test_every_head_is_documented(head: str) -> None:
    assert re.search(rf"^\| `{head}` \| `\w+` \[batch_size, num_logits, ", PAGE, re.MULTILINE)
