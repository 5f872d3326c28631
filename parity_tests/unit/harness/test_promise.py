"""What a recipe promises must be in the artifact and in its evidence: every way to leave it out is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import ArtifactError, FleetError
from qwen3vl_export.fleet.store import open_store
from qwen3vl_export.fleet.zoo import write_zoo
from qwen3vl_export.manifest import MANIFEST, NEEDED_FILES
from qwen3vl_export.promise import GRAPHS, missing_checks, promised_graphs
from qwen3vl_export.recipe import load_recipe

from ...fixtures.commands import assert_one_line, invoke

Json = dict[str, Any]
Change = Callable[[Json], object]
PRECISIONS = ("fp16", "int8", "q4", "q4f16")


def without(*path: str) -> Change:
    """Removes what lies at a path of keys."""

    def change(values: Json) -> None:
        for key in path[:-1]:
            values = values[key]
        del values[path[-1]]

    return change


def given(value: object, *path: str) -> Change:
    """Puts a value at a path of keys."""

    def change(values: Json) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


def spoilt(artifact: Path, out: Path, change: Change) -> Path:
    """A directory with the changed manifest alone."""
    values = json.loads((artifact / MANIFEST).read_text("utf-8"))
    change(values)
    out.mkdir(parents=True)
    (out / MANIFEST).write_text(json.dumps(values), "utf-8")
    return out


DATA = "onnx/decoder_model_merged.onnx_data"
BROKEN: dict[str, tuple[str, Change, str]] = {
    "no graphs": ("tiny", given({}, "graphs"), "lists no graph vision_encoder, which its recipe promises"),
    **{
        f"no {graph}": ("tiny", without("graphs", graph), f"lists no graph {graph}, which its recipe promises")
        for graph in GRAPHS
    },
    "a graph too many": (
        "tiny",
        given(["embed_tokens"], "recipe", "graphs"),
        "its encoders are not those its recipe promises",
    ),
    "a graph nobody asked for": (
        "tiny",
        given(["vision_encoder", "embeddings", "decoder_model_merged"], "recipe", "graphs"),
        "lists a graph embed_tokens, which its recipe does not name",
    ),
    "no promise": ("tiny", given([], "recipe", "graphs"), "its recipe names no graph"),
    "an unknown promise": (
        "tiny",
        lambda values: values["recipe"]["graphs"].append("audio_encoder"),
        "its recipe names a graph audio_encoder, which does not exist",
    ),
    "no recipe": ("tiny", given({}, "recipe"), "not a manifest"),
    "no encoder": ("tiny", given([], "encoders"), "its encoders are not those its recipe promises"),
    "a bound encoder": (
        "tiny",
        given([{"graph": "vision_encoder", "grid": [24, 24]}], "encoders"),
        "its encoders are not those its recipe promises",
    ),
    "no size": (
        "tiny-buckets",
        given([], "recipe", "vision", "sizes"),
        "its recipe names no picture size for vision_encoder",
    ),
    "one bucket less": (
        "tiny-buckets",
        without("graphs", "vision_encoder_16x32"),
        "lists no graph vision_encoder_16x32, which its recipe promises",
    ),
    "one encoder less": (
        "tiny-buckets",
        lambda values: values["encoders"].pop(),
        "its encoders are not those its recipe promises",
    ),
    "no files": (
        "tiny",
        given({}, "files"),
        "graph decoder_model_merged is made of onnx/decoder_model_merged.onnx, which its files do not list",
    ),
    "an unlisted graph": (
        "tiny",
        given("onnx/other.onnx", "graphs", "decoder_model_merged", "file"),
        "graph decoder_model_merged is made of onnx/other.onnx, which its files do not list",
    ),
    "unlisted weights": (
        "tiny",
        without("files", DATA),
        f"graph decoder_model_merged is made of {DATA}, which its files do not list",
    ),
    "an unlisted second decoder": (
        "tiny",
        without("files", "onnx/decoder_model.onnx"),
        "graph decoder_model_merged is made of onnx/decoder_model.onnx, which its files do not list",
    ),
    **{f"no {name}": ("tiny", without("files", name), f"its files do not list {name}") for name in NEEDED_FILES},
    "no precisions": (
        "tiny-precisions",
        given({}, "precisions"),
        "lists no precision fp16, which its recipe promises",
    ),
    **{
        f"no {precision}": (
            "tiny-precisions",
            without("precisions", precision),
            f"lists no precision {precision}, which its recipe promises",
        )
        for precision in PRECISIONS
    },
    "a precision nobody asked for": (
        "tiny-precisions",
        without("recipe", "precisions", "q4"),
        "lists a precision q4, which its recipe does not name",
    ),
    "a precision without graphs": (
        "tiny-precisions",
        given({}, "precisions", "q4", "graphs"),
        "lists no graph vision_encoder in precision q4, which its recipe promises",
    ),
    "a precision without a decoder": (
        "tiny-precisions",
        without("precisions", "q4f16", "graphs", "decoder_model_merged"),
        "lists no graph decoder_model_merged in precision q4f16, which its recipe promises",
    ),
    "a precision that promises less": (
        "tiny-precisions",
        given(["embed_tokens"], "precisions", "q4", "recipe", "graphs"),
        "its recipe in precision q4 is not what its recipe says of it",
    ),
    "a precision that is not quantized": (
        "tiny-precisions",
        given("none", "precisions", "q4", "recipe", "quantization", "decoder_model_merged", "method"),
        "its recipe in precision q4 is not what its recipe says of it",
    ),
    "a precision of unlisted weights": (
        "tiny-precisions",
        given(["onnx/other.onnx_data"], "precisions", "q4", "graphs", "decoder_model_merged", "data"),
        "graph decoder_model_merged in precision q4 is made of onnx/other.onnx_data, which its files do not list",
    ),
    "graphs of another type": ("tiny", given([], "graphs"), "not a manifest (graphs is not an object)"),
    "files of another type": ("tiny", given(None, "files"), "not a manifest"),
}


@pytest.mark.parametrize(("name", "change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_does_not_list_what_is_promised_is_refused(
    name: str, change: Change, said: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    root = spoilt(built(name), tmp_path / "spoilt", change)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(root, check=False)
    assert str(caught.value).startswith(f"{root / MANIFEST}: {said}")
    assert "Rebuild the artifact" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ("verify",),
        ("publish", "--to", "out"),
        ("publish", "--to", "out", "--dry-run"),
        ("verify-artifact",),
        ("run", "--prompt", "What is this?"),
        ("inspect",),
        ("fetch", "--out", "out"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_it_alike(
    command: tuple[str, ...], tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = spoilt(tiny_artifact, tmp_path / "spoilt", without("graphs", "decoder_model_merged"))
    (root / "provenance.intoto.json").touch()
    name, *options = command
    said = f"{MANIFEST}: lists no graph decoder_model_merged, which its recipe promises. Rebuild the artifact"
    assert_one_line(invoke(name, str(root), *options), said)
    assert not (tmp_path / "out").exists()


def test_a_store_refuses_it_too(tiny_artifact: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    spoilt(tiny_artifact, tmp_path / "store" / "artifacts" / "tiny-0123", given({}, "graphs"))
    said = (
        r"cannot read \(artifacts/tiny-0123/manifest\.json: lists no graph vision_encoder, which its recipe promises\)"
    )
    with pytest.raises(FleetError, match=said):
        write_zoo(store)


@pytest.mark.parametrize("name", ["tiny", "tiny-fixed", "tiny-buckets", "tiny-int4", "tiny-precisions"])
def test_what_a_build_writes_keeps_its_promises(name: str, built: Callable[[str], Path]) -> None:
    for artifact in open_artifact(built(name)).every_precision:
        manifest = artifact.manifest
        assert set(promised_graphs(manifest.recipe, manifest.facts.patch_size)) == set(manifest.graphs)


def test_evidence_needs_a_check_of_every_bound_encoder_and_quantized_graph() -> None:
    recipe = load_recipe("tiny-buckets").to_json_dict()
    recipe["quantization"]["decoder_model_merged"] = {"method": "int8_dynamic"}
    graphs = promised_graphs(recipe, 16)
    missing = set(missing_checks(recipe, graphs, "qwen3_vl", []))
    assert {f"vision[grid-{grid[0]}x{grid[1]}]" for grid in graphs.values() if grid} <= missing
    assert {"weights[decoder_model_merged]", "embeddings", "generate"} <= missing and "exam" not in missing
    checks = [(name.rstrip("]").partition("[")[0], name.rstrip("]").partition("[")[2]) for name in missing]
    assert list(missing_checks(recipe, graphs, "qwen3_vl", checks)) == []
    for check in (("weights", "decoder_model_merged"), *((stage, name) for stage, name in checks if "grid-" in name)):
        others = [other for other in checks if other != check]
        assert list(missing_checks(recipe, graphs, "qwen3_vl", others)) == [f"{check[0]}[{check[1]}]"]
