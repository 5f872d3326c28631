"""Opening graphs: external data that stays inside, guards that become messages, versions that are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from threading import Event, Timer
from threading import enumerate as threads_running
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qwen3vl_export.artifact import Artifact
from qwen3vl_export.cli.loading import load
from qwen3vl_export.contract import DECODER, FOLD_ANY_SIZE
from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import Image, session
from qwen3vl_export.runtime.external import check_external_data, external_locations
from qwen3vl_export.runtime.session import Sessions, check_onnxruntime, load_session, translate_guards, version_tuple

from ...fixtures.standin import artifact_without_graphs

GUARD = "guard: image_grid_thw does not add up to the rows of pixel_values"


def external_tensor(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_graph(path: Path, location: str = "g.onnx_data") -> None:
    """`y = x + weight`, with the weight outside; fails where the lengths differ."""
    add = helper.make_node("Add", ["x", "w"], ["y"], name=GUARD)
    floats = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([add], "g", [floats], [out], [external_tensor("w", location)])
    path.parent.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    write_graph(tmp_path / "onnx" / "g.onnx")
    np.arange(4, dtype=np.float32).tofile(tmp_path / "onnx" / "g.onnx_data")
    return artifact_without_graphs(tmp_path, graphs={"g": {"file": "onnx/g.onnx"}})


def test_a_graph_is_opened_once_and_casts_its_inputs(artifact: Artifact) -> None:
    sessions = Sessions(artifact, threads=1)
    (result,) = sessions.run("g", {"x": np.ones(4, np.float64)}, ["y"])
    np.testing.assert_array_equal(result, [1, 2, 3, 4])
    assert sessions.open("g") is sessions.open("g")
    assert sessions.dtypes("g") == {"x": np.float32}


def cast_weight(tmp_path: Path, options: Any) -> list[str]:
    """The operators that onnxruntime runs of `y = x + cast(weight)`."""
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "v"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4], np.arange(4))
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_weights_are_cast_once_however_large_they_are(tmp_path: Path) -> None:
    """A limit of onnxruntime leaves larger ones to be cast in every call, such as the output head's."""
    key, unlimited = FOLD_ANY_SIZE
    limited = onnxruntime.SessionOptions()
    limited.log_severity_level = 4
    limited.add_session_config_entry(key, "15")
    assert cast_weight(tmp_path, limited) == ["Cast", "Add"]
    options = session.session_options(DECODER, 1)
    assert options.get_session_config_entry(key) == unlimited
    assert cast_weight(tmp_path, options) == ["Add"]


def test_a_graph_opened_ahead_is_waited_for_and_opened_once(artifact: Artifact) -> None:
    begun, ready = Event(), Event()
    opened = []

    def opener(path: Path, options: Any) -> Any:
        opened.append(path.name)
        begun.set()
        assert ready.wait(10)
        return load_session(path, options)

    sessions = Sessions(artifact, 1, opener)
    sessions.open_ahead(["g"])
    assert begun.wait(10)
    Timer(0.05, ready.set).start()
    assert sessions.dtypes("g") == {"x": np.float32} and opened == ["g.onnx"]


def test_what_cannot_be_opened_ahead_raises_when_it_is_used(artifact: Artifact) -> None:
    (artifact.root / "onnx" / "g.onnx_data").unlink()
    sessions = Sessions(artifact)
    sessions.open_ahead(["g", "vision_encoder"])
    for thread in threads_running():
        if thread.name.startswith("open "):
            thread.join()
    for graph in ("g", "vision_encoder"):
        with pytest.raises(ArtifactError):
            sessions.open(graph)


LEAVING = """
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from qwen3vl_export.runtime.session import Sessions, load_session
begun = Event()
def opener(path, options):
    begun.set()
    return load_session(path, options)
root = Path(sys.argv[1])
manifest = SimpleNamespace(min_onnxruntime="1.23", graphs={"g": {}}, files={}, recipe={})
artifact = SimpleNamespace(root=root, manifest=manifest, graph_path=lambda name: root / "onnx" / "g.onnx")
sessions = Sessions(artifact, opener=opener)
sessions.open_ahead(["g"])
begun.wait()
"""


def test_a_process_can_end_while_a_graph_is_being_opened(tmp_path: Path) -> None:
    """onnxruntime aborts it otherwise. The weight is large enough to be packed for longer than the process lasts."""
    side = 8192
    write_graph(tmp_path / "onnx" / "g.onnx")
    model = onnx.load(tmp_path / "onnx" / "g.onnx", load_external_data=False)
    model.graph.node[0].op_type = "MatMul"
    weight = model.graph.initializer[0]
    weight.dims[:] = [side, side]
    weight.external_data[2].value = str(4 * side**2)
    for value in (*model.graph.input, *model.graph.output):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["n", side]))
    (tmp_path / "onnx" / "g.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "onnx" / "g.onnx_data").open("wb") as data:
        data.truncate(4 * side**2)
    done = subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_open_what_every_prompt_needs_before_there_is_one(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Queue[str] = Queue()
    opener: Callable[..., Any] = session.load_session

    def watched(path: Path, *arguments: Any, **named: Any) -> Any:
        opened.put(path.stem)
        return opener(path, *arguments, **named)

    monkeypatch.setattr(session, "load_session", watched)
    model = load(tiny_artifact, 1, False, "", None, None, "cpu", None)
    assert {opened.get(timeout=10), opened.get(timeout=10)} == {"decoder_model_merged", "embeddings"}
    assert model.generate("What is 2+3?", 4) and opened.empty()
    for _ in range(2):
        model.picture(Image(np.zeros((64, 64, 3), np.uint8)))
    assert opened.get(timeout=10) == "vision_encoder"
    model.generate([Image(np.zeros((64, 64, 3), np.uint8)), "What is this?"], 1)
    assert opened.empty()


def test_a_guard_becomes_its_message(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"^g: image_grid_thw does not add up to the rows of pixel_values\. "):
        Sessions(artifact).run("g", {"x": np.ones(3, np.float32)}, ["y"])


def test_other_failures_stay_what_they_are(artifact: Artifact) -> None:
    with pytest.raises(Exception, match="Invalid rank") as caught:
        Sessions(artifact).run("g", {"x": np.ones((2, 2), np.float32)}, ["y"])
    assert not isinstance(caught.value, InputError)


def test_a_graph_that_is_not_there(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="no graph named vision_encoder"):
        Sessions(artifact).open("vision_encoder")


def test_a_graph_without_its_data(artifact: Artifact) -> None:
    (artifact.root / "onnx" / "g.onnx_data").unlink()
    with pytest.raises(ArtifactError, match="cannot load it"):
        Sessions(artifact).open("g")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "deeper/../../secret"])
def test_data_outside_the_artifact_is_refused(artifact: Artifact, location: str) -> None:
    (artifact.root / "secret").write_bytes(bytes(16))
    os.symlink(artifact.root / "secret", artifact.root / "onnx" / "link")
    write_graph(artifact.root / "onnx" / "g.onnx", location)
    with pytest.raises(ArtifactError, match="is outside the artifact"):
        Sessions(artifact).open("g")


@pytest.fixture
def snapshot(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact as huggingface_hub's cache holds it: links to the files of the repository."""
    repository = tmp_path / "models--me--tiny"
    root = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    (root / "onnx").mkdir(parents=True)
    for number, path in enumerate(sorted((artifact.root / "onnx").iterdir())):
        path.rename(repository / "blobs" / str(number))
        (root / "onnx" / path.name).symlink_to(Path("../../../blobs") / str(number))
    return Artifact(root, artifact.manifest)


def test_a_snapshot_of_the_hubs_cache_is_opened_where_it_lies(snapshot: Artifact) -> None:
    ones = np.ones(4, np.float32)
    assert Sessions(snapshot).run("g", {"x": ones}, ["y"])[0].shape == (4,)


@pytest.mark.parametrize("elsewhere", ["secret", "models--me--other/blobs/0"])
def test_a_snapshots_link_out_of_its_repository_is_refused(snapshot: Artifact, elsewhere: str) -> None:
    secret = snapshot.root.parents[2] / elsewhere
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(bytes(16))
    data = snapshot.root / "onnx" / "g.onnx_data"
    data.unlink()
    data.symlink_to(secret)
    with pytest.raises(ArtifactError, match="is outside the artifact"):
        Sessions(snapshot).open("g")


@pytest.mark.parametrize("data", [b"no model", bytes(200), b"\x3a\xff\xff\xff\xff\x0f", b"\x3a"])
def test_a_file_that_is_no_graph(artifact: Artifact, data: bytes) -> None:
    (artifact.root / "onnx" / "g.onnx").write_bytes(data)
    with pytest.raises(ArtifactError):
        Sessions(artifact).open("g")


def test_locations_are_found_wherever_a_tensor_may_be() -> None:
    def const(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=external_tensor(name, name))

    inner = helper.make_graph([const("in-branch")], "inner", [], [helper.make_tensor_value_info("in-branch", 1, [4])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outputs = [helper.make_tensor_value_info("y", 1, [4])]
    graph = helper.make_graph([const("in-node"), branch], "g", [], outputs, [external_tensor("w", "initializer")])
    function = helper.make_function("d", "f", [], ["in-function"], [const("in-function")], [])
    model = helper.make_model(graph, functions=[function])
    sparse = onnx.SparseTensorProto(values=external_tensor("v", "sparse-values"), dims=[4])
    sparse.indices.CopyFrom(external_tensor("i", "sparse-indices"))
    model.graph.sparse_initializer.append(sparse)
    listed = onnx.SparseTensorProto(values=external_tensor("v", "in-attribute"), dims=[4])
    model.graph.node[0].attribute.append(helper.make_attribute("sparse_value", listed))
    model.graph.node[0].attribute.append(helper.make_attribute("tensors", [external_tensor("t", "in-list")]))
    expected = {
        "in-attribute",
        "in-list",
        "in-branch",
        "in-node",
        "in-function",
        "initializer",
        "sparse-values",
        "sparse-indices",
    }
    assert external_locations(model.SerializeToString()) == expected


def test_locations_equal_what_onnx_reads(artifact: Artifact) -> None:
    path = artifact.root / "onnx" / "g.onnx"
    check_external_data(path, path.parent)
    model = onnx.load(path, load_external_data=False)
    entries = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert external_locations(path.read_bytes()) == entries == {"g.onnx_data"}


def test_an_onnxruntime_that_is_too_old() -> None:
    check_onnxruntime(artifact_without_graphs(min_onnxruntime=onnxruntime.__version__))
    with pytest.raises(ArtifactError, match=r"needs onnxruntime 99\.1, this is .*pip install 'onnxruntime>=99\.1'"):
        Sessions(artifact_without_graphs(min_onnxruntime="99.1"))


@pytest.mark.parametrize(("version", "numbers"), [("1.23.0", (1, 23, 0)), ("1.24.0.dev20", (1, 24, 0)), ("x", ())])
def test_versions(version: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(version) == numbers


@pytest.mark.parametrize("threads", [0, -3, 1025, 100_000])
def test_threads_that_cannot_be_started_are_refused(threads: Any) -> None:
    with pytest.raises(InputError, match="threads"):
        Sessions(artifact_without_graphs(), threads)


@pytest.mark.parametrize("message", ["std::bad_alloc", "bfc_arena.cc: Failed to allocate memory for requested buffer"])
def test_memory_that_onnxruntime_could_not_get_is_a_memory_error(message: str) -> None:
    with pytest.raises(MemoryError, match="in the graph decoder"), translate_guards("decoder"):
        raise RuntimeError(message)
