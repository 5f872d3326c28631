"""What is made for a publication: the bill of materials, the model card, the demo page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_export.artifact import PARITY, Artifact, open_artifact
from qwen3vl_export.publishing.evidence import passing_evidence
from qwen3vl_export.publishing.model_card import introduction, rate
from qwen3vl_export.publishing.publication import prepare

from ...fixtures.commands import assert_one_line, invoke
from ...fixtures.paths import ROOT
from ...fixtures.proven import prove
from ...fixtures.spoiling import edit


def test_the_bill_of_materials_is_valid_cyclonedx(proven: Path) -> None:
    from cyclonedx.schema import SchemaVersion  # imports jsonschema, which takes seconds
    from cyclonedx.validation.json import JsonStrictValidator

    text = prepare(proven).generated["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    source = document["components"][0]
    assert source["type"] == "machine-learning-model"
    assert {file["name"] for file in source["components"]} >= {"config.json", "model.safetensors"}
    assert {"torch", "onnx"} <= {component["name"] for component in document["components"]}


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_the_card_says_what_was_never_run(provider: str, proven: Path) -> None:
    artifact = open_artifact(proven)
    recipe = {**artifact.manifest.recipe, "packaging": {"runtimes": [], "provider": provider}}
    lines = introduction(Artifact(artifact.root, replace(artifact.manifest, recipe=recipe)))
    assert ("never run on a real GPU" in " ".join(lines)) == (provider == "cuda")


def test_the_card_says_what_was_measured(proven: Path) -> None:
    card = prepare(proven, "me/tiny").generated["README.md"].decode()
    evidence = passing_evidence(open_artifact(proven))
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "tags: [onnx, onnxruntime, onnxruntime-genai, transformers.js, qwen3_vl]\n" in card
    assert f"### onnxruntime {open_artifact(proven).manifest.min_onnxruntime} or newer\n" in card
    assert f"{len(evidence.checks)} of {evidence.planned} checks" in card
    assert open_artifact(proven).manifest_sha256 in card
    assert card.count("me/tiny") >= 5 and "OWNER" not in card


def test_the_card_says_how_fast_the_verification_was(proven: Path, copy: Path) -> None:
    card = prepare(proven).generated["README.md"].decode()
    speed = passing_evidence(open_artifact(proven)).speed
    assert speed is not None and speed.answers == 1 and speed.new_tokens == 63
    assert f"{rate(speed.new_rate)} tokens/s\nanswering, over 1 answers." in card
    assert (rate(1870.0), rate(4.25)) == ("1,870", "4.25")
    edit(copy, PARITY, lambda values: values.update(speed=None))
    assert (
        "Not measured: the verification ran spread over several processes"
        in prepare(copy).generated["README.md"].decode()
    )


def test_the_demo_page_is_published_beside_the_artifact(proven: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    result = invoke("publish", str(proven), "--to", str(out), "--demo")
    assert result.exit_code == 0 and f"python -m http.server --directory {out}" in " ".join(result.stdout.split())
    demo = ROOT / "docs" / "demo"
    page = {path.relative_to(demo): path.read_bytes() for path in demo.rglob("*") if path.is_file()}
    assert Path("page/worker.js") in page and all((out / name).read_bytes() == data for name, data in page.items())
    assert invoke("verify-artifact", str(out)).exit_code == 0
    with (out / "index.html").open("a") as file:
        file.write(" ")
    assert_one_line(invoke("verify-artifact", str(out)), "index.html: was altered")


def test_a_page_that_could_not_run_it_is_refused(tiny_fixed_artifact: Path, tmp_path: Path) -> None:
    fixed = prove(tiny_fixed_artifact, tmp_path / "fixed")
    result = invoke("publish", str(fixed), "--to", str(tmp_path / "out"), "--demo")
    assert_one_line(result, "is not packaged for transformers.js, which the demo page runs it with")
