"""Operators that round activations, and the same weights without that: against float64 on the dequantized integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from parity_tests.harness.sides.artifact.float_activations import (
    MICROSOFT,
    float_activations,
    float_blocks,
    keep_products_in_float,
    nodes_of,
    rounds_activations,
)
from qwen3vl_export.errors import ParityError

Array = NDArray[Any]
Case = tuple[list[NodeProto], dict[str, Array], Callable[[Array], Array]]  # nodes, stored, the truth in float64

K, N, SIZE = 64, 32, 32
EXPERTS, INNER = 4, 32
RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, K)).astype(np.float32)
ROUTER = RNG.standard_normal((5, EXPERTS)).astype(np.float32)


def scales_of(*shape: int) -> Array:
    return (RNG.random(shape) * 0.01 + 0.01).astype(np.float32)


def restored(integers: Array, zero_points: Array | float, scales: Array) -> Array:
    """Blocks [..., K] of integers in float64."""
    blocks = integers.reshape(*integers.shape[:-1], -1, SIZE).astype(np.float64)
    zeros = np.asarray(zero_points, np.float64)
    return ((blocks - (zeros[..., None] if zeros.ndim else zeros)) * scales[..., None]).reshape(integers.shape)


def blocks_at_level_4() -> Case:
    integers, scales = RNG.integers(0, 256, (N, K), np.uint8), scales_of(N, K // SIZE)
    attributes = {"K": K, "N": N, "bits": 8, "block_size": SIZE, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=MICROSOFT, **attributes)
    weight = restored(integers, 128, scales)
    return [node], {"w": integers.reshape(N, K // SIZE, SIZE), "s": scales.reshape(-1)}, lambda x: x @ weight.T


def dynamic_product() -> Case:
    integers, scales, bias = RNG.integers(-127, 128, (K, N), np.int8), scales_of(N), scales_of(N)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "", "b"], ["y"], domain=MICROSOFT)
    return [node], {"w": integers, "s": scales, "b": bias}, lambda x: x @ (integers * scales.astype(np.float64)) + bias


def integer_product() -> Case:
    integers, scales = RNG.integers(-127, 128, (K, N), np.int8), scales_of(N)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qs", "s"], ["both"]),
        helper.make_node("Mul", ["floats", "both"], ["y"]),
    ]
    return nodes, {"w": integers, "s": scales}, lambda x: x @ (integers * scales.astype(np.float64))


def experts(has_zero_points: bool) -> Case:
    """8-bit experts; gate and up rows alternate."""
    shapes = (EXPERTS, 2 * INNER, K), (EXPERTS, K, INNER)
    integers = [RNG.integers(0, 256, shape, np.uint8) for shape in shapes]
    scales = [scales_of(*shape[:2], shape[2] // SIZE) / 8 for shape in shapes]
    zeros = [RNG.integers(100, 150, array.shape, np.uint8) for array in scales]
    inputs = ["x", "router", "w1", "s1", "", "w2", "s2", *(["", "", "", "", "z1", "z2"] if has_zero_points else [])]
    stored = dict(zip(("w1", "w2", "s1", "s2"), (*integers, *scales), strict=True))
    stored |= dict(zip(("z1", "z2"), zeros, strict=True)) if has_zero_points else {}
    attributes = {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
    attributes |= {"activation_alpha": 1.0, "activation_beta": 0.0, "expert_weight_bits": 8, "block_size": SIZE}
    node = helper.make_node("QMoE", inputs, ["y"], domain=MICROSOFT, **attributes)
    gate_up, down = (
        restored(array, zero if has_zero_points else 128, scale)
        for array, zero, scale in zip(integers, zeros, scales, strict=True)
    )

    def compute(x: Array) -> Array:
        rows = []
        for row, logits in zip(x.astype(np.float64), ROUTER.astype(np.float64), strict=True):
            chosen = np.argsort(-logits)[:2]
            shares = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
            both = [gate_up[expert] @ row for expert in chosen]
            inner = [value[0::2] / (1 + np.exp(-value[0::2])) * value[1::2] for value in both]
            rows.append(sum(s * down[expert] @ i for s, expert, i in zip(shares, chosen, inner, strict=True)))
        return np.stack(rows)

    return [node], stored, compute


def model_of(nodes: list[NodeProto], stored: dict[str, Array]) -> ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, K])]
    if any("router" in node.input for node in nodes):
        inputs.append(helper.make_tensor_value_info("router", TensorProto.FLOAT, [None, EXPERTS]))
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    outputs = [onnx.ValueInfoProto(name="y")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph(nodes, "operator", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def error(model: ModelProto, truth: Array) -> float:
    """Largest difference over the largest value."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    keep_products_in_float(options)
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": X, "router": ROUTER}
    result = session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})[0]
    return float(np.abs(result - truth).max() / np.abs(truth).max())


CASES: dict[str, Callable[[], Case]] = {
    "MatMulNBits": blocks_at_level_4,
    "DynamicQuantizeMatMul": dynamic_product,
    "MatMulInteger": integer_product,
    "QMoE": lambda: experts(has_zero_points=False),
    "QMoE-zero-points": lambda: experts(has_zero_points=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_weights_are_the_same_and_nothing_is_rounded(case: Callable[[], Case]) -> None:
    nodes, stored, compute = case()
    model, truth = model_of(nodes, stored), compute(X)
    before = model.SerializeToString()
    assert any(map(rounds_activations, nodes_of(model.graph)))
    assert error(model, truth) > 1e-3
    changed = float_activations(model)
    assert not any(map(rounds_activations, nodes_of(changed.graph)))
    assert error(changed, truth) < 2e-6
    assert model.SerializeToString() == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_rounds_in_a_browser_as_well_still_does(case: Callable[[], Case]) -> None:
    nodes, stored, compute = case()
    model, truth = model_of(nodes, stored), compute(X)
    changed = float_blocks(model)
    if case is blocks_at_level_4:
        assert error(changed, truth) < 2e-6
    else:
        assert changed == model


def test_an_operator_without_a_replacement_is_refused() -> None:
    nodes, stored, _ = integer_product()
    nodes = [*nodes[:2], helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT)]
    with pytest.raises(ParityError, match=r"operator: DynamicQuantizeLinear .* rounds activations"):
        float_activations(model_of(nodes, stored))
