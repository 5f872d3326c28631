"""Damaged and hostile recipes: each ends in one line, at once, and leaves the others usable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from parity_tests.fixtures.commands import assert_one_line, invoke
from parity_tests.fixtures.paths import RECIPES
from qwen3vl_export.errors import RecipeError
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.yaml import LARGEST_FILE, LONGEST_CHAIN

LISTS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'x'}]\n" for n in range(30))
MAPPINGS = "".join(
    f"m{n}: &m{n} {{{', '.join(f'k{k}: *m{n - 1}' for k in range(9)) if n else 'k: v'}}}\n" for n in range(30)
)
MERGED = "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9) if n else '{k: v}'}]}}\n" for n in range(30))
HOSTILE = {
    "lists of aliases": LISTS,
    "mappings of aliases": MAPPINGS,
    "merged aliases": MERGED,
    "a list in itself": "name: &a [*a]\n",
    "a mapping in itself": "checkpoint: &a {source: *a}\n",
    "a recipe in itself": "&a\nvision: *a\n",
    **{
        f"{text} as {kind}": f"description: !!{kind} {text}\n"
        for kind in (
            "int",
            "float",
            "bool",
            "timestamp",
            "binary",
            "set",
            "omap",
            "pairs",
            "seq",
            "map",
            "python/name:x",
        )
        for text in ("x", '""', "[1]", "{a: 1}", "0x", "1:x")
    },
    "null as text": "name: !!null x\n",
    "a long number": f"description: {'9' * 9999}\n",
    "a long hexadecimal number": f"dtype: 0x{'f' * 9999}\n",
    "a long number in a list": f"vision: {{grid: [0b{'1' * 20_000}, 2]}}\n",
    "a number of 64 bits": f"vision: {{grid: {2**63}}}\n",
    "nothing that ends": "description: .inf\n",
    "NUL": "name: 'a\0b'\n",
    "NUL in a source": 'checkpoint: {source: "./a\\0b"}\n',
    "NUL in extends": 'extends: "a\\0b.yaml"\n',
    "half a pair": 'description: "\\ud800"\n',
    "half a pair in extends": 'extends: "\\ud800.yaml"\n',
    "half a pair in a key": '"\\ud800": 1\n',
    "a long name": f"name: {'a' * 9999}\n",
    "a long key": f"{'a' * 9999}: 1\n",
    "a long source": f"checkpoint: {{source: {'a' * 9999}}}\n",
    "a long base": f"extends: {'a' * 9999}.yaml\n",
    "a long path of a base": f"extends: {'a/' * 3000}a.yaml\n",
    "a long path of a base below a directory": f"extends: {'a/' * 2044}a.yaml\n",
    "a long path of a source": f"checkpoint: {{source: ./{'a/' * 3000}}}\n",
    "a long revision": f"checkpoint: {{source: a/b, revision: {'a' * 9999}}}\n",
    "deep lists": f"name: {'[' * 999}{']' * 999}\n",
    "deep mappings": f"name: {'{a: ' * 999}1{'}' * 999}\n",
    "deep indentation": "".join(f"{' ' * n}a:\n" for n in range(999)),
    "keys of keys": "? {a: 1}\n: b\n",
    "a key that is a list": "? [a]\n: b\n",
    "two documents": "name: a\n---\nname: b\n",
    "no text": "\xff\xfe",
    "tabs": "\tname: a\n",
    "an anchor of nothing": "name: *a\n",
    "huge": "#" * (LARGEST_FILE + 1),
    "many values": f"description: [{'1,' * 21_000}]\n",
    "pictures of a hundred thousand pixels": "extends: tiny.yaml\nvision: {grid: fixed, sizes: [[100000, 100000]]}\n",
}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "precisions").mkdir(parents=True)
    (tmp_path / "recipes" / "tiny.yaml").write_text("checkpoint: {source: ./x}\ndescription: a good one\n")
    return tmp_path / "recipes"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_it_is_one_line(text: str, recipes: Path) -> None:
    file = recipes / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    started = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    said = str(caught.value)
    assert "bad.yaml" in said and "\n" not in said and len(said) < 1000
    assert time.process_time() - started < 5
    said.encode()


@pytest.mark.parametrize("folder", [".", "precisions"])
def test_a_bad_file_does_not_end_the_list(folder: str, recipes: Path) -> None:
    (recipes / folder / "bad.yaml").write_text(f"description: good\n{LISTS}")
    result = invoke("recipes", "list")
    assert result.exit_code == 0, result
    text = " ".join(result.stdout.split())
    assert "bad" in text and "cannot be read" in text and "a good one" in text


def test_a_long_chain_is_one_line(recipes: Path) -> None:
    for index in range(LONGEST_CHAIN + 3):
        (recipes / f"r{index}.yaml").write_text(f"extends: r{index + 1}.yaml\n")
    assert_one_line(invoke("recipes", "show", "r0"), f"over {LONGEST_CHAIN} recipes one on another")


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 300}.yaml", f"recipes/{'a' * 300}.yaml"])
def test_a_name_that_no_file_can_have_is_one_line(name: str, recipes: Path) -> None:
    assert_one_line(invoke("recipes", "show", name), "is not the name of a file")


@pytest.mark.parametrize("block", ["checkpoint", "calibration"])
def test_a_home_of_nobody_is_a_directory_like_others(block: str, recipes: Path) -> None:
    text = f"extends: {RECIPES / 'tiny.yaml'}\n{block}: {{source: ~nobody-of-this-name/x}}\n"
    (recipes / "home.yaml").write_text(text)
    recipe = load_recipe(recipes / "home.yaml")
    directory = recipe.checkpoint_dir if block == "checkpoint" else recipe.calibration_dir
    assert directory == recipes / "~nobody-of-this-name" / "x"


def test_a_repository_may_have_a_name_that_no_directory_can_have(recipes: Path) -> None:
    (recipes / "long.yaml").write_text(f"checkpoint: {{source: {'a' * 300}, revision: main}}\n")
    assert load_recipe(recipes / "long.yaml").checkpoint_dir is None
