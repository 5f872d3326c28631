"""Products of 8-bit integers are exact on processors that would saturate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qwen3vl_export.contract import DECODER
from qwen3vl_export.runtime import saturation, session
from qwen3vl_export.runtime.saturation import EXACT, LARGEST, PRODUCT, SUM, saturates
from qwen3vl_export.runtime.session import load_session, session_options


def test_the_product_is_what_its_bytes_are_said_to_be() -> None:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])
    weight = helper.make_tensor("w", TensorProto.INT8, [2, 1], bytes([127, 127]), raw=True)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8, producer_name="")
    assert model.SerializeToString() == PRODUCT


@pytest.mark.parametrize("result", [SUM, np.iinfo(np.int16).max])
def test_a_processor_is_known_by_what_it_computes(result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, names: Any, feeds: Any) -> list[Any]:
            return [np.array([[result]], np.int32)]

    monkeypatch.setattr(saturation.ort, "InferenceSession", Processor)
    saturates.cache_clear()
    try:
        assert saturates() == (result != SUM)
    finally:
        saturates.cache_clear()


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("source", ["file", "memory"])
def test_graphs_with_such_products_ask_for_exact_ones(
    source: str, saturating: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "saturates", lambda: saturating)
    monkeypatch.setattr(session, "start_session", lambda device, model, options: options)
    for model, multiplies in ((PRODUCT, True), (inside_a_branch(PRODUCT), True), (table_of_bytes(), False)):
        path = tmp_path / "graph.onnx"
        path.write_bytes(model if source == "file" else b"")
        options = session_options(DECODER, None)
        opened = load_session(path, options, model if source == "memory" else None)
        assert asks(opened) == (saturating and multiplies)
        assert asks(load_session(path, options, model if source == "memory" else None)) == asks(opened)


def test_bytes_are_dequantized_on_every_processor(tmp_path: Path) -> None:
    path = tmp_path / "table.onnx"
    path.write_bytes(table_of_bytes())
    (rows,) = load_session(path, session_options(DECODER, None)).run(None, {})
    np.testing.assert_array_equal(rows, [[-1.0, 2.0], [-127.0, 254.0]])


def asks(options: Any) -> bool:
    """Whether a session's options ask for exact products."""
    try:
        return bool(options.get_session_config_entry(EXACT) == "1")
    except RuntimeError:  # they have no such entry
        return False


def table_of_bytes() -> bytes:
    """Signed bytes [2, 2], a scale for each column and no zero points: weights of `int8` in standard operators."""
    table = helper.make_tensor("w", TensorProto.INT8, [2, 2], [-1, 1, -127, 127])
    scales = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=1)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph([node], "MatMulInteger", [], [y], [table, scales])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def inside_a_branch(model: bytes) -> bytes:
    """A model whose only node chooses between a graph and itself."""
    branch = onnx.load_from_string(model).graph
    node = helper.make_node("If", ["which"], ["z"], then_branch=branch, else_branch=branch)
    which = helper.make_tensor_value_info("which", TensorProto.BOOL, [])
    z = helper.make_tensor_value_info("z", TensorProto.INT32, [1, 1])
    graph = helper.make_graph([node], "g", [which], [z])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def test_sessions_that_ask_are_exact_on_this_processor() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(EXACT, "1")
    exact: Any = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    assert exact.run(None, {"x": LARGEST})[0] == SUM
