"""Every published configuration as its repository has it, with random weights: it builds, passes `verify`, and answers.

The recipe is the shipped one of that size, the tokenizer the published one. Rows are narrow, layers few.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from parity_tests.fixtures.official import SIZES, config, published_shapes
from parity_tests.fixtures.paths import ROOT
from parity_tests.fixtures.published import EDITIONS, write_published_checkpoint
from parity_tests.harness.verify import open_bench, run
from qwen3vl_export.exporter.checkpoint.files import INDEX
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.runtime import Image, Qwen3VL

CASE = "users-case-16x16-after-24x24"
PHOTOGRAPH = ROOT / "parity_tests" / "harness" / "cases" / "media" / "chelsea.png"
PUBLISHED = {  # size -> tensors and bytes, as the index of its repository says
    "2b": (625, 4_255_064_064),
    "4b": (713, 8_875_631_616),
    "8b": (750, 17_534_247_392),
    "32b": (1_058, 66_714_780_128),
    "30b-a3b": (882, 62_141_508_064),
    "235b-a22b": (1_388, 471_340_045_792),
}
BUILT = [f"{size}-{EDITIONS[number % 2]}" for number, size in enumerate(SIZES)]
FILES = {
    *("README.md", "chat_template.json", "config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json", INDEX),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_random_checkpoints_have_the_published_tensors(size: str) -> None:
    shapes = published_shapes(config(size))
    assert (len(shapes), 2 * sum(map(prod, shapes.values()))) == PUBLISHED[size]


@pytest.mark.parametrize("name", BUILT)
def test_a_published_configuration_builds_verifies_and_answers(
    name: str, published_tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = write_published_checkpoint(tmp_path / "checkpoint", name, published_tokenizer)
    files = {path.name for path in checkpoint.iterdir()}
    assert files > FILES and all(file.startswith("model-0000") for file in files - FILES) and len(files - FILES) > 1
    lines: list[str] = []
    out = build(load_recipe(f"qwen3-vl-{name}"), checkpoint=str(checkpoint), out=tmp_path / "out", log=lines.append)
    assert [line for line in lines if line.startswith("warning")] == []
    bench = open_bench(out, "quick", checkpoint, cache=tmp_path / "cache")
    bench.matrix = bench.matrix.model_copy(update={"new_tokens": 8, "forced_tokens": 8})
    report = run(bench, "quick", only=lambda check: check.name in (CASE, "generation-settings"))
    assert [outcome.message for outcome in report.failures] == []
    assert len(report.outcomes) == 12

    model = Qwen3VL.load(out)
    assert model.artifact.manifest.checkpoint["licence"] == {"license": "apache-2.0"}
    reply = model.reply([Image(PHOTOGRAPH), "What is this?"], max_new_tokens=4, seed=0)
    assert [bool(reply.reasoning), bool(reply.content)] == ([True, False] if "thinking" in name else [False, True])
