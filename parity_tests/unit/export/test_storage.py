"""Where weights are stored: files below a limit, and a tied table once, where every runtime finds it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter

from qwen3vl_export.artifact import Artifact, open_artifact
from qwen3vl_export.contract import DECODER, EMBED_TOKENS, Graph
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.optimize import optimize
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.plan import plan_build, planned_files
from qwen3vl_export.exporter.quantize import quantize, store_as
from qwen3vl_export.exporter.rewrites.rows import use_gemm
from qwen3vl_export.exporter.simplify import simplify
from qwen3vl_export.exporter.skeletons import Skeleton
from qwen3vl_export.exporter.stages import Stages
from qwen3vl_export.exporter.weights import ArrayKey, FilePlacement, WeightFile, attach
from qwen3vl_export.exporter.weights.inputs import Source
from qwen3vl_export.packaging import storage_rules
from qwen3vl_export.packaging.names import add_second_names
from qwen3vl_export.packaging.package import StorageRules
from qwen3vl_export.promise import GENAI, ONNXRUNTIME, TRANSFORMERS_JS
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.quantize import MethodSettings
from qwen3vl_export.runtime import Qwen3VL

from ...fixtures.paths import TINY
from ...fixtures.tiny_builds import SPLIT_LIMIT
from ...fixtures.traces import build_submodule, trace


def make_key(name: str) -> ArrayKey:
    return name, Source(name), ir.DataType.FLOAT


def test_an_array_starts_a_new_file_where_it_would_pass_the_limit() -> None:
    placement = FilePlacement("g", limit=10_000)
    assert placement.add({make_key("a"): 4000, make_key("b"): 5904}) == [make_key("a"), make_key("b")]
    assert placement.file_sizes == {"g.onnx_data": 10_000}
    placement.add({make_key("b"): 5904, make_key("c"): 1, make_key("big"): 20_000, make_key("d"): 7})
    assert placement.file_sizes == {
        "g.onnx_data": 10_000,
        "g.onnx_data_1": 1,
        "g.onnx_data_2": 20_000,
        "g.onnx_data_3": 7,
    }
    assert placement.find(make_key("b")) == ("g.onnx_data", 4096, 5904) and placement.find(make_key("d")) == (
        "g.onnx_data_3",
        0,
        7,
    )


def test_what_the_lender_has_is_not_stored_again() -> None:
    table = FilePlacement("table")
    head = FilePlacement("head", lender=table)
    table.add({make_key("t"): 100})
    assert head.add({make_key("w"): 5, make_key("t"): 100}) == [make_key("w")]
    assert head.file_sizes == {"head.onnx_data": 5} and head.file_names == ["head.onnx_data", "table.onnx_data"]
    assert head.find(make_key("t")) == ("table.onnx_data", 0, 100) and head.find(make_key("w")) == (
        "head.onnx_data",
        0,
        5,
    )


def test_every_runtime_says_how_it_wants_its_weights() -> None:
    assert storage_rules([ONNXRUNTIME, GENAI]) == StorageRules(None, named_by_graph=False)
    assert storage_rules([ONNXRUNTIME, TRANSFORMERS_JS]) == StorageRules(2_000_000_000, named_by_graph=True)


@pytest.fixture(scope="module")
def split(tiny_split_artifact: Path) -> Artifact:
    return open_artifact(tiny_split_artifact)


def data_files(artifact: Artifact, graph: str) -> list[Path]:
    return [artifact.root / name for name in artifact.manifest.graphs[graph]["data"]]


def test_no_file_passes_the_limit(split: Artifact) -> None:
    for graph in ("vision_encoder", "decoder_model_merged"):
        sizes = [path.stat().st_size for path in data_files(split, graph)]
        assert len(sizes) >= 3 and max(sizes) <= SPLIT_LIMIT
    chunks = split.json_file("config.json")["transformers.js_config"]["use_external_data_format"]
    assert chunks == {
        f"{name}.onnx": len(data_files(split, name))
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    }


def test_split_files_hold_the_same_weights(split: Artifact, tiny_artifact: Path) -> None:
    for graph in split.manifest.graphs:
        split_model, whole_model = (onnx.load(root / "onnx" / f"{graph}.onnx") for root in (split.root, tiny_artifact))
        expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole_model.graph.initializer}
        assert expected and {tensor.name for tensor in split_model.graph.initializer} == set(expected)
        for tensor in split_model.graph.initializer:
            assert np.array_equal(numpy_helper.to_array(tensor), expected[tensor.name]), tensor.name
        ort.InferenceSession(str(split.root / "onnx" / f"{graph}.onnx"))


@cache
def trace_skeleton(graph: str) -> tuple[Graph, ir.Model]:
    """A graph up to where precisions part, traced once for all tests."""
    submodule = build_submodule(open_checkpoint(str(TINY)), graph, "ort", torch.float32)
    return submodule.graph, optimize(simplify(trace(submodule, torch.float32)), "ort")


def write(folder: Path, precision: str, **settings: Any) -> tuple[FilePlacement, FilePlacement]:
    """Write embed_tokens and a decoder that reads its table, in one precision; checks the planned files of both."""
    checkpoint = open_checkpoint(str(TINY))
    skeletons: list[Skeleton] = []
    quantization = TypeAdapter(MethodSettings).validate_python(
        {"method": precision, **settings} if settings else {"method": "none"}
    )
    table = FilePlacement(EMBED_TOKENS)
    placements = {EMBED_TOKENS: table, DECODER: FilePlacement(DECODER, lender=table)}
    for name, placement in placements.items():
        graph, model = trace_skeleton(name)
        model = use_gemm(quantize(model.clone(), quantization, "ort"))
        model = store_as(model, ir.DataType.BFLOAT16) if precision == "bfloat16" else model
        lender = EMBED_TOKENS if name == DECODER else None
        skeletons.append(Skeleton(graph, model.clone(), Stages(name), lender=lender))
        with WeightFile(folder, placement) as data:
            ir.save(attach(model, graph, checkpoint, data), folder / f"{name}.onnx")
    for file in planned_files(skeletons, checkpoint, StorageRules()):
        size = (folder / Path(file.name).name).stat().st_size if file.name.startswith("onnx/") else file.bytes
        assert file.bytes == size if file.name.endswith("_data") else abs(file.bytes - size) < 64_000, file
    return placements[EMBED_TOKENS], placements[DECODER]


@pytest.mark.parametrize(
    ("precision", "settings", "shared"),
    [
        ("float32", {}, 1),
        ("bfloat16", {}, 1),
        ("int8", {"block_size": 32}, 2),
        ("int4", {"block_size": 32, "symmetric": True}, 2),
        ("int4", {"block_size": 16, "symmetric": False, "algorithm": "search"}, 3),
    ],
)
def test_look_up_and_output_head_read_the_same_bytes(
    precision: str, settings: dict[str, Any], shared: int, tmp_path: Path
) -> None:
    table, decoder = write(tmp_path, precision, **settings)
    assert decoder.borrowed_files == ["embed_tokens.onnx_data"] and len(table.ranges) == shared
    assert not any(key[0].endswith("embed_tokens.weight") for key in decoder.ranges)
    session = ort.InferenceSession(str(tmp_path / "embed_tokens.onnx"))
    facts = open_checkpoint(str(TINY)).facts
    rows = session.run(None, {"input_ids": np.arange(facts.vocab_size)[None]})[0][0, :, : facts.hidden_size]
    assert np.array_equal(head_of(tmp_path).run(None, {"x": np.eye(facts.hidden_size, dtype=np.float32)})[0].T, rows)


def head_of(folder: Path) -> Any:
    """The decoder's output head alone, from `x` [n, H] to logits."""
    model = onnx.load(folder / f"{DECODER}.onnx", load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.name.startswith("lm_head.weight")]
    names = {tensor.name for tensor in weights}
    nodes = [node for node in model.graph.node if names & set(node.input)]
    if nodes[-1].op_type == "Cast":
        nodes += [node for node in model.graph.node if nodes[-1].output[0] in node.input]
    nodes[-1].input[0] = "x"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "head", values[:1], values[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), folder / "h.onnx"
    )
    return ort.InferenceSession(str(folder / "h.onnx"))


def test_a_linked_table_has_a_second_name_for_a_runtime_that_goes_by_names(tmp_path: Path) -> None:
    recipe = tmp_path / "linked.yaml"
    recipe.write_text(f"extends: {TINY.parents[1] / 'tiny.yaml'}\npackaging: {{tied_head: link}}\n")
    artifact = open_artifact(build(load_recipe(recipe), out=tmp_path / "out", log=lambda line: None))
    second, first = "onnx/decoder_model_merged.onnx_data_1", "onnx/embed_tokens.onnx_data"
    assert artifact.manifest.second_names == {second: first}
    assert (artifact.root / second).samefile(artifact.root / first)
    assert artifact.manifest.graphs[DECODER]["data"] == ["onnx/decoder_model_merged.onnx_data", first]
    chunks = artifact.json_file("config.json")["transformers.js_config"]["use_external_data_format"]
    assert chunks == {"vision_encoder.onnx": 1, "embed_tokens.onnx": 1, "decoder_model_merged.onnx": 2}
    head, table = (external_data(artifact.graph_path(graph)) for graph in (DECODER, EMBED_TOKENS))
    (looked_up,) = table.values()
    assert looked_up["location"] == Path(first).name
    assert head["lm_head.weight"] == {**looked_up, "location": Path(second).name}
    assert Qwen3VL.load(artifact.root).generate("What is 2 plus 2?") == "4"


def external_data(graph: Path) -> dict[str, dict[str, str]]:
    """For each weight of a graph file, its external data: location, offset and length."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in tensors
        if tensor.external_data
    }


def test_a_graph_of_two_precisions_and_a_table_of_two_graphs(tmp_path: Path) -> None:
    """The decoder that both precisions share names its files as each of them does."""
    (tmp_path / "onnx").mkdir()
    data = [f"onnx/{DECODER}.onnx_data", f"onnx/{EMBED_TOKENS}.onnx_data"]
    tensors = []
    for name in data:
        (tmp_path / name).write_bytes(name.encode())
        tensor = TensorProto(name=name, dims=[len(name)], data_type=TensorProto.UINT8)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=Path(name).name)
        tensors.append(tensor)
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    (tmp_path / "onnx" / f"{DECODER}.onnx").write_bytes(model.SerializeToString())
    entries = {DECODER: {"file": f"onnx/{DECODER}.onnx", "data": data}}
    _, names = add_second_names(tmp_path, {"": entries, "q4": entries}, (DECODER,))
    assert names == {
        f"onnx/{DECODER}.onnx_data_1": data[1],
        f"onnx/{DECODER}_q4.onnx_data": data[0],
        f"onnx/{DECODER}_q4.onnx_data_1": data[1],
    }
    for stem in (DECODER, f"{DECODER}_q4"):
        locations = [place["location"] for place in external_data(tmp_path / "onnx" / f"{stem}.onnx").values()]
        assert locations == [f"{stem}.onnx_data", f"{stem}.onnx_data_1"]
        assert [(tmp_path / "onnx" / name).read_bytes().decode() for name in locations] == data


def test_a_build_for_runtimes_that_find_it_stores_the_table_once(tmp_path: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    graphs = "graphs: [decoder_model_merged, embed_tokens]\nparity: {held_out: false}\n"
    recipe.write_text(f"extends: {TINY.parents[1] / 'tiny.yaml'}\n{graphs}")
    plan = plan_build(load_recipe(recipe), out=tmp_path / "out", log=lambda line: None)
    artifact = open_artifact(build(load_recipe(recipe), out=tmp_path / "out", log=lambda line: None))
    entry = artifact.manifest.graphs[DECODER]
    assert entry["data"] == ["onnx/decoder_model_merged.onnx_data", "onnx/embed_tokens.onnx_data"]
    assert entry["shared"] == [{"file": "onnx/embed_tokens.onnx_data", "tensors": ["lm_head.weight"]}]
    assert [record["stage"] for record in entry["stages"]][-2:] == ["stored", "written"]
    planned = {file.name: file.bytes for file in plan.files}
    for path in (artifact.root / "onnx").glob("*_data*"):
        assert planned[f"onnx/{path.name}"] == path.stat().st_size
    ort.InferenceSession(str(artifact.graph_path(DECODER)))
