"""Pinning a recipe: its revisions become commits, and nothing else of the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.fixtures.recipe_files import COMMIT, write
from qwen3vl_export.errors import CheckpointError, RecipeError
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe import pin as recipe_pin

HUB = "Qwen/Qwen3-VL-2B-Instruct"
LAYOUTS = {
    "block": (
        f"# top\ncheckpoint:\n  source: {HUB} # where\n  revision: main # which\ndtype: float32\n",
        f"# top\ncheckpoint:\n  source: {HUB} # where\n  revision: {COMMIT} # which\ndtype: float32\n",
    ),
    "block without revision": (
        f"checkpoint:\n  source: {HUB} # where\n\ndtype: float32 # end",
        f"checkpoint:\n  source: {HUB} # where\n  revision: {COMMIT}\n\ndtype: float32 # end",
    ),
    "flow": (
        f"checkpoint: {{source: {HUB}}} # where\n",
        f"checkpoint: {{source: {HUB}, revision: {COMMIT}}} # where\n",
    ),
    "inherited": (
        "extends: base.yaml # all of it\n",
        f"extends: base.yaml # all of it\ncheckpoint:\n  revision: {COMMIT}\n",
    ),
    "inherited, empty": (
        "extends: base.yaml\ncheckpoint: {}\n",
        f"extends: base.yaml\ncheckpoint: {{revision: {COMMIT}}}\n",
    ),
}


@pytest.mark.parametrize("before, after", LAYOUTS.values(), ids=LAYOUTS)
def test_pin_changes_the_revision_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    asked = []

    def resolve(source: str, revision: str) -> str:
        asked.append((source, revision))
        return COMMIT

    monkeypatch.setattr(recipe_pin, "resolve_commit", resolve)
    write("base.yaml", f"checkpoint: {{source: {HUB}}}\n")
    file = write("mine.yaml", before)
    write("mine.pinned.yaml", "mine\n")
    assert recipe_pin.pin(file) == (file, [f"{HUB}@{COMMIT}"], True)
    assert file.read_text("utf-8") == after
    assert recipe_pin.pin(file) == (file, [f"{HUB}@{COMMIT}"], False)
    assert asked == [(HUB, "main")]
    assert [path.read_text("utf-8") for path in folder.glob("*pinned*")] == ["mine\n"]


ADAPTERS = {
    "block": (
        "checkpoint:\n  source: ./base\n  adapters:\n"
        "    - ./mine # ours\n    - org/lora # theirs\n    - org/lora@old\n",
        "checkpoint:\n  source: ./base\n  adapters:\n"
        "    - ./mine # ours\n    - org/lora@{main} # theirs\n    - org/lora@{old}\n",
    ),
    "flow, beside a checkpoint of the Hub": (
        'checkpoint: {source: org/base, adapters: ["org/lora", org/other@%s]}\n' % ("2" * 40),
        "checkpoint: {source: org/base, adapters: [org/lora@{main}, org/other@%s], revision: {main}}\n" % ("2" * 40),
    ),
}


@pytest.mark.parametrize("before, after", ADAPTERS.values(), ids=ADAPTERS)
def test_pin_writes_the_commit_of_each_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    commits = {"main": COMMIT, "old": "a" * 40}
    monkeypatch.setattr(recipe_pin, "resolve_commit", lambda source, revision: commits[revision])
    file = write("mine.yaml", before)
    _, repositories, changed = recipe_pin.pin(file)
    assert changed
    assert f"org/lora@{COMMIT}" in repositories
    assert "./mine" not in repositories
    assert file.read_text("utf-8") == after.replace("{main}", COMMIT).replace("{old}", "a" * 40)
    assert recipe_pin.pin(file) == (file, repositories, False)


def test_an_inherited_adapter_is_pinned_where_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_pin, "resolve_commit", lambda source, revision: COMMIT)
    base = write("base.yaml", f"checkpoint: {{source: {HUB}, adapters: [org/lora]}}\n")
    file = write("mine.yaml", "extends: base.yaml\n")
    with pytest.raises(RecipeError, match=r"are inherited and name no commit\. Pin the recipe that this one extends"):
        recipe_pin.pin(file)
    assert file.read_text("utf-8") == "extends: base.yaml\n"
    recipe_pin.pin(base)
    assert recipe_pin.pin(file) == (file, [f"{HUB}@{COMMIT}", f"org/lora@{COMMIT}"], False)


def test_a_commit_of_digits_stays_text(folder: Path) -> None:
    text = recipe_pin.with_revision(f"checkpoint: {{source: {HUB}}}\n", "1" * 40)
    assert load_recipe(write("mine.yaml", text)).checkpoint.revision == "1" * 40


def test_a_directory_cannot_be_pinned(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a directory\. There is no commit to pin"):
        recipe_pin.pin("tiny.yaml")


def test_pin_says_when_the_hub_is_out_of_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.model_info", _unreachable)
    file = write("mine.yaml", f"checkpoint: {{source: {HUB}}}\n")
    with pytest.raises(CheckpointError) as caught:
        recipe_pin.pin(file)
    assert str(caught.value) == f"{HUB}: the Hugging Face Hub cannot be reached (no route). Try again when online"
    assert file.read_text("utf-8") == f"checkpoint: {{source: {HUB}}}\n"


def _unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("no route\nand more")
