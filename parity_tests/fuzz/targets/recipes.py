"""Recipes: mutated YAML, in a directory with the bases and the checkpoint that they name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from parity_tests.fixtures.paths import RECIPES

from ..mutations import NUMBERS, PATHS, SECRET, TEXTS, mutate_bytes, mutate_text
from .base import Target, replaced

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])
MERGES = "\n".join(
    ["m0: &m0 {k: v}", *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 30))]
)
WORDS = (
    *map(str, NUMBERS),
    *TEXTS,
    *PATHS,
    *(
        "&a",
        "*a",
        "&a *a",
        "&a [*a]",
        "&a {b: *a}",
        "<<: *a",
        "<<: [*a, *a]",
        "<<: 1",
        "<<: {}",
        "? [a, b]",
        "? {a: b}",
    ),
    *(
        "!!float x",
        "!!int x",
        "!!int ''",
        "!!bool x",
        "!!binary '*'",
        "!!timestamp x",
        "!!null x",
        "!!set {a}",
        "!!map []",
    ),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!seq {}", "!!str [a]", "!!python/object/apply:os.system [id]", "!x y"),
    *("%YAML 9.9", "%TAG ! x", "---", "...", "--- !!map", "|", ">", "|+9", "'", '"', "\\", '"\\ud800"', '"\\x00"'),
    *(
        "0x" + "f" * 5000,
        "9" * 5000,
        "0b12",
        "1:2:3:4",
        "0o8",
        ".inf",
        ".nan",
        "1_0",
        "~",
        "=",
        "- - - -",
        "{",
        "}",
        "[",
    ),
    *("[" * 2000, "{a: " * 2000, "- " * 2000, "? " * 2000, "#", "\t", "\r", "\x85", "\u2028", "\ufeff", "a" * 5000),
    *("extends: recipe.yaml", "extends: tiny.yaml", "extends: ..", f"extends: ../../{SECRET}", "extends: /dev/zero"),
    *("extends: [tiny.yaml]", "extends:", "name: ../x", f"name: {'n' * 300}", "precisions: {q4: {extends: tiny.yaml}}"),
    *("checkpoint: {source: /, revision: x}", "checkpoint: x", "source: ../..", "quantization: {decoder: {method: x}}"),
    *(LAUGHS, MERGES),
)


class Recipes(Target):
    name, inputs = "recipes", 400
    confined = False  # a recipe may extend any file

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.texts = [path.read_text("utf-8") for path in sorted(RECIPES.glob("*.yaml"))]

    def make(self, random: Random) -> bytes:
        text = mutate_text(random, random.choice(self.texts), WORDS)
        data = text.encode("utf-8", "surrogatepass")
        return mutate_bytes(random, data) if random.random() < 0.1 else data

    def open(self, box: Path) -> Callable[[bytes], object]:
        from qwen3vl_export.recipe import in_precision, load_recipe

        recipes = box / "recipes"
        shutil.copytree(RECIPES, recipes, ignore=shutil.ignore_patterns("*.safetensors", "calibration"))
        mutated = recipes / "recipe.yaml"

        def read(data: bytes) -> None:
            with replaced(mutated, data):
                load_recipe(mutated).to_json_dict()
                in_precision(mutated, "int8")

        read(self.texts[0].encode())
        return read
