"""Several precisions in one directory: stored once what is equal, each with evidence of its own, published together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from qwen3vl_export.artifact import PARITY, open_artifact
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, VISION_ENCODER
from qwen3vl_export.publishing.publication import prepare
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.model import Recipe
from qwen3vl_export.runtime import Image, Qwen3VL

from ...fixtures.commands import assert_one_line, invoke
from ...fixtures.spoiling import edit
from ...fixtures.tiny_builds import build_once
from ...harness.cases.picture_kinds import photograph

NAMES = ("fp16", "int8", "q4", "q4f16")
SHARED = {  # what the recipe stores alike
    "onnx/vision_encoder_q4.onnx_data": "onnx/vision_encoder.onnx_data",
    "onnx/embed_tokens_q4.onnx_data": "onnx/embed_tokens.onnx_data",
    "onnx/vision_encoder_q4f16.onnx_data": "onnx/vision_encoder_fp16.onnx_data",
    "onnx/embed_tokens_q4f16.onnx_data": "onnx/embed_tokens_fp16.onnx_data",
}


@pytest.fixture(scope="module")
def artifact() -> Path:
    return build_once("tiny-precisions")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("tiny-precisions")


def test_a_precision_says_everything_itself(recipe: Recipe) -> None:
    assert recipe.every_precision == ("", *NAMES)
    assert recipe.at("q4").dtype == "float32" and recipe.at("q4f16").dtype == "float16"
    assert recipe.at("q4").quantization_of(VISION_ENCODER).method == "none"
    profiles = {name: recipe.at(name).parity.tolerances for name in recipe.every_precision}
    assert profiles == {"": "float32", "fp16": "float16", "int8": "int8", "q4": "int4", "q4f16": "int4"}


def test_a_graph_is_written_for_the_first_that_stores_it_so(recipe: Recipe) -> None:
    assert recipe.file_precision("q4", VISION_ENCODER) == "" and recipe.file_precision("q4", DECODER) == "q4"
    assert recipe.file_precision("q4f16", EMBED_TOKENS) == "fp16"
    assert recipe.file_precision("int8", VISION_ENCODER) == "int8"


def test_equal_weights_are_stored_once_and_the_manifest_says_so(artifact: Path) -> None:
    manifest = open_artifact(artifact).manifest
    assert tuple(manifest.precisions) == NAMES
    assert manifest.second_names == SHARED
    for second, first in SHARED.items():
        assert manifest.files[second] == manifest.files[first]
        assert (artifact / second).samefile(artifact / first)
    digests = [
        record.sha256 for name, record in manifest.files.items() if name.endswith("_data") and name not in SHARED
    ]
    assert len(set(digests)) == len(digests)
    assert open_artifact(artifact, precision="q4").manifest.graphs[VISION_ENCODER]["file"] == "onnx/vision_encoder.onnx"


def test_a_second_name_is_the_same_graph(artifact: Path) -> None:
    def graph(name: str) -> onnx.ModelProto:
        model = onnx.load(artifact / "onnx" / f"{name}.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                assert entry.key != "location" or entry.value == f"{name}.onnx_data"
                entry.value = "" if entry.key == "location" else entry.value
        return model

    assert graph("vision_encoder_q4") == graph("vision_encoder")


@pytest.mark.parametrize("precision", ["", *NAMES])
def test_each_answers(artifact: Path, precision: str) -> None:
    model = Qwen3VL.load(artifact, threads=1, precision=precision)
    assert model.generate([Image(photograph()), "What is this?"]) == "a cat"


def test_the_command_line_names_one(artifact: Path) -> None:
    asked = ("run", str(artifact), "--prompt", "What is 2 plus 2?", "--precision")
    assert invoke(*asked, "q4").stdout.strip() == "4"
    assert_one_line(invoke(*asked, "q5"), "has no precision q5. Besides the default it has fp16, int8, q4, q4f16")
    assert "fp16, int8, q4, q4f16" in invoke("inspect", str(artifact)).stdout


def test_each_has_its_own_evidence_and_all_are_published(proven_precisions: Path, tmp_path: Path) -> None:
    out, fetched = tmp_path / "out", tmp_path / "fetched"
    assert invoke("publish", str(proven_precisions), "--to", str(out)).exit_code == 0
    assert invoke("fetch", str(out), "--out", str(fetched)).exit_code == 0
    evidence = {name: json.loads((fetched / f"parity_{name}.json").read_text("utf-8")) for name in NAMES}
    assert [report["profile"]["name"] for report in evidence.values()] == ["float16", "int8", "int4", "int4"]
    for root in (out, fetched):
        assert all((root / second).samefile(root / first) for second, first in SHARED.items())
    card = (fetched / "README.md").read_text("utf-8")
    assert all(f"| `{name}` | " in card and f"## Parity with PyTorch in {name}" in card for name in NAMES)
    assert f"(parity_{NAMES[0]}.png)" in card and (fetched / "parity_q4.png").is_file()
    checked = invoke("verify-artifact", str(fetched))
    assert checked.stdout.count("parity ") == 5, checked


def without_weights(values: dict[str, Any]) -> None:
    values["checks"] = [check for check in values["checks"] if check["stage"] != "weights"]
    values["planned"] = len(values["checks"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "parity_q4.json").unlink(), "has no parity_q4.json. Prove it"),
        (
            lambda root: (root / "parity_q4.json").write_bytes((root / PARITY).read_bytes()),
            "is about tiny-precisions, not",
        ),
        (
            lambda root: edit(root, "parity_q4.json", without_weights),
            "parity_q4.json: has no check of weights[decoder_model_merged], which the recipe promises. Prove it",
        ),
    ],
    ids=["missing", "another precision's", "without quantized weights"],
)
def test_every_precision_must_be_proven(proven_precisions: Path, spoil: object, says: str) -> None:
    assert callable(spoil)
    path = proven_precisions / "parity_q4.json"
    before = path.read_bytes()
    try:
        spoil(proven_precisions)
        assert_one_line(invoke("publish", str(proven_precisions), "--to", "nowhere", "--dry-run"), says, code=1)
    finally:
        path.write_bytes(before)
    assert prepare(proven_precisions)
