"""Products of 8-bit integers are exact on processors that would saturate them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qwen3vl_export.contract import DECODER
from qwen3vl_export.runtime import saturation, session
from qwen3vl_export.runtime.saturation import EXACT, LARGEST, PRODUCT, SUM, saturates


def test_the_product_is_what_its_bytes_are_said_to_be() -> None:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])
    weight = helper.make_tensor("w", TensorProto.INT8, [2, 1], bytes([127, 127]), raw=True)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8, producer_name="")
    assert model.SerializeToString() == PRODUCT


@pytest.mark.parametrize("result", [SUM, np.iinfo(np.int16).max])
def test_exact_products_are_asked_for_where_others_saturate(result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, names: Any, feeds: Any) -> list[Any]:
            return [np.array([[result]], np.int32)]

    monkeypatch.setattr(saturation.ort, "InferenceSession", Processor)
    saturates.cache_clear()
    try:
        options = session.session_options(DECODER, None)
    finally:
        saturates.cache_clear()
    try:
        asked = options.get_session_config_entry(EXACT)
    except RuntimeError:  # it has no such entry
        asked = "0"
    assert asked == ("0" if result == SUM else "1")


def test_sessions_that_ask_are_exact_on_this_processor() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(EXACT, "1")
    exact: Any = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    assert exact.run(None, {"x": LARGEST})[0] == SUM
