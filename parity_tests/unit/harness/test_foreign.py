"""Other exporters' packages: verified by their contract, with a report of what is wrong with them.

The package is the tiny portable artifact under other names; once whole, once with plain features as in published
packages, which drop DeepStack.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import ModelProto, helper, numpy_helper

from qwen3vl_export.contract import (
    DECODER,
    EMBED_TOKENS,
    EMBEDDINGS,
    IMAGE_FEATURES,
    IMAGE_GRID_THW,
    INPUTS_EMBEDS,
    LOGITS,
    PIXEL_VALUES,
    VISION_ENCODER,
)
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.exporter.checkpoint.files import settings_files

from ...faults.graphs import add_constant, after_output, before_input
from ...fixtures.paths import TINY
from ...fixtures.standin import tiny_facts
from ...harness import verify as harness
from ...harness.options import Options

FACTS = tiny_facts()
WIDTH = FACTS.hidden_size
CASES = ("as-traced-24x24", "two-images-of-different-size", "text-only")


def rename(model: ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)


def last_dim(model: ModelProto, name: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name == name:
            value.type.tensor_type.shape.dim[-1].dim_value = WIDTH


def cut_output(model: ModelProto, name: str) -> None:
    """The first H columns only."""
    bounds = [
        add_constant(model, f"cut_{key}", np.array([value])) for key, value in (("a", 0), ("b", WIDTH), ("c", -1))
    ]
    after_output(model, name, lambda a, b: [helper.make_node("Slice", [a, *bounds], [b])])
    last_dim(model, name)


def pad_input(model: ModelProto, name: str, rank: int) -> None:
    """Reads H columns and fills the rest with zeros."""
    pads = add_constant(model, "pad_by", np.array([0] * (2 * rank - 1) + [FACTS.wide_size - WIDTH]))
    before_input(model, name, lambda a, b: [helper.make_node("Pad", [a, pads], [b])])
    last_dim(model, name)


def package(portable: Path, out: Path, plain: bool, scatter_inside: bool = True) -> Path:
    """A package as somebody else would publish it; returns its contract."""
    out.mkdir()
    for file in settings_files(TINY):
        shutil.copyfile(file, out / file.name)
    shutil.copytree(portable / "onnx", out / "onnx")

    def change(graph: str, *edits: Any, names: dict[str, str]) -> dict[str, Any]:
        path = out / "onnx" / f"{graph}.onnx"
        model = onnx.load(path, load_external_data=False)
        for edit in edits if plain else ():
            edit(model)
        rename(model, names)
        onnx.save(model, path)
        return {"file": f"onnx/{graph}.onnx"}

    past = {
        f"past_key_values.{i}.{part}": f"past.{part}.{i}"
        for i in range(FACTS.num_hidden_layers)
        for part in ("key", "value")
    }
    graphs = {
        VISION_ENCODER: change(
            VISION_ENCODER,
            lambda model: cut_output(model, IMAGE_FEATURES),
            names={PIXEL_VALUES: "pixels", IMAGE_GRID_THW: "grid", IMAGE_FEATURES: "features"},
        )
        | {"inputs": {PIXEL_VALUES: "pixels", IMAGE_GRID_THW: "grid"}, "outputs": {IMAGE_FEATURES: "features"}},
        DECODER: change(DECODER, lambda model: pad_input(model, INPUTS_EMBEDS, 3), names={LOGITS: "scores", **past})
        | {"inputs": {"past_key_values": "past.{part}.{layer}"}, "outputs": {LOGITS: "scores"}},
        EMBED_TOKENS: change(EMBED_TOKENS, lambda model: cut_output(model, INPUTS_EMBEDS), names={}),
    }
    if scatter_inside:
        graphs[EMBEDDINGS] = change(
            EMBEDDINGS,
            lambda model: pad_input(model, IMAGE_FEATURES, 2),
            lambda model: cut_output(model, INPUTS_EMBEDS),
            names={},
        )
    contract = out / "contract.yaml"
    contract.write_text(yaml.safe_dump({"name": "somebody/package", "checkpoint": str(TINY), "graphs": graphs}))
    return contract


@pytest.mark.parametrize("scatter_inside", [True, False], ids=["embeddings", "embed-tokens-only"])
def test_a_whole_package_passes(
    tiny_portable_artifact: Path, tmp_path: Path, scatter_inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = package(tiny_portable_artifact, tmp_path / "package", plain=False, scatter_inside=scatter_inside)
    assert harness.verify(contract, Options(cases=CASES)) == 0, capsys.readouterr().out


def test_plain_features_fail_with_the_diagnosis(
    tiny_portable_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = package(tiny_portable_artifact, tmp_path / "package", plain=True)
    assert harness.verify(contract, Options(cases=CASES, bisect=True)) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "vision[as-traced-24x24]" in printed
    assert "Looks like: DeepStack maps missing from the features (vision encoder, DeepStack)" in printed
    assert "Looks like: DeepStack maps dropped (decoder, DeepStack)" in printed
    assert "bisect vision_encoder on as-traced-24x24: all" in printed  # the tower itself is right
    assert "bisect decoder layer 1, input_layernorm" in printed


def contract_of(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "x", "checkpoint": str(TINY), **values}))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"graphs": {}}, "graphs"),
        ({"graphs": {"vision": {"file": "a.onnx"}}}, "no such graph. Graphs are vision_encoder"),
        ({"graphs": {VISION_ENCODER: {"file": "a.onnx"}}}, "a.onnx is missing"),
        ({"graphs": {VISION_ENCODER: {"flie": "a.onnx"}}}, "graphs.vision_encoder.file: Field required"),
        ({"graphs": {VISION_ENCODER: {"file": "a.onnx"}}, "tolerence": "x"}, "tolerence: Extra inputs"),
    ],
)
def test_a_mistake_in_a_contract_is_one_line(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        harness.open_bench(contract_of(tmp_path / "contract.yaml", **values))
    assert "\n" not in str(caught.value)


def test_a_contract_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    numbers = numpy_helper.from_array(np.zeros(1), "x")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [numbers])), tmp_path / "a.onnx")
    graphs = {VISION_ENCODER: {"file": "a.onnx"}}
    with pytest.raises(ArtifactError, match="names no checkpoint"):
        harness.open_bench(contract_of(tmp_path / "contract.yaml", checkpoint=None, graphs=graphs))
