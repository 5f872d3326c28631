"""What `inspect` reports, on a small graph made here and on the tiny artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qwen3vl_export.cli import main as cli
from qwen3vl_export.errors import ArtifactError
from qwen3vl_export.inspection import Port, Weights, inspect_path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """`y = (x @ w) if flag else x`, with `w` in external data and a constant of four-bit integers."""
    yes = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["a"])],
        "yes",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
    )
    no = helper.make_graph(
        [helper.make_node("Own", ["x"], ["b"], domain="com.microsoft")],
        "no",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    main = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=yes, else_branch=no)],
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])],
        [
            numpy_helper.from_array(np.zeros((8, 64), np.float32), "w"),
            helper.make_tensor("four", TensorProto.INT4, [3], [1, 2, 3]),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "graph.onnx"
    onnx.save(
        helper.make_model(main, opset_imports=opsets), path, save_as_external_data=True, location="graph.onnx_data"
    )
    return path


def test_a_graph_is_described(graph: Path) -> None:
    (report,) = inspect_path(graph).graphs
    assert report.inputs == (Port("x", "float32", ("rows", 8)), Port("flag", "bool", ()))
    assert report.outputs == (Port("y", "float32", ("rows", "?")),)
    assert report.opset == {"ai.onnx": 21, "com.microsoft": 1}
    assert report.ops == {"If": 1, "MatMul": 1, "com.microsoft::Own": 1}
    assert report.weights == {"float32": Weights(1, 8 * 64 * 4), "int4": Weights(1, 2)}
    assert report.data == {"graph.onnx_data": 8 * 64 * 4}


def test_missing_weights_are_shown_and_not_needed(graph: Path) -> None:
    graph.with_name("graph.onnx_data").unlink()
    result = CliRunner().invoke(cli.app, ["inspect", str(graph)])
    assert result.exit_code == 0
    assert "graph.onnx_data: MISSING weights" in result.stdout


def test_tables_and_json_say_the_same(graph: Path) -> None:
    tables = CliRunner().invoke(cli.app, ["inspect", str(graph)]).stdout
    for word in ("[rows, 8]", "float32", "com.microsoft::Own", "graph.onnx_data: 2.0 KB weights", "opset ai.onnx 21"):
        assert word in tables
    values = json.loads(CliRunner().invoke(cli.app, ["inspect", str(graph), "--json"]).stdout)
    assert values["graphs"][0]["ops"] == {"If": 1, "MatMul": 1, "com.microsoft::Own": 1}


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_text("hello")
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        inspect_path(path)


def test_the_tiny_artifact(tiny_artifact: Path) -> None:
    inspection = inspect_path(tiny_artifact)
    assert [Path(graph.file).stem for graph in inspection.graphs] == [
        "vision_encoder",
        "embed_tokens",
        "embeddings",
        "decoder_model_merged",
    ]
    vision, tokens, embeddings, decoder = inspection.graphs
    assert vision.inputs[0].shape == ("num_patches", 1536)
    assert tokens.data == embeddings.data
    assert decoder.ops["com.microsoft::GroupQueryAttention"] == 4
    assert all(graph.stages for graph in inspection.graphs)
    result = CliRunner().invoke(cli.app, ["inspect", str(tiny_artifact)])
    assert result.exit_code == 0
    assert "past_key_values.{0..3}.key" in result.stdout
    assert "build stages" in result.stdout
    assert json.loads(CliRunner().invoke(cli.app, ["inspect", str(tiny_artifact), "--json"]).stdout)["manifest"]
