"""A quantized head in blocks of rows: the same bytes, the same numbers, and the same weight to who reads the graph."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from parity_tests.fixtures.head_blocks import copy_with_blocks
from parity_tests.fixtures.tiny_builds import build_once
from parity_tests.harness.sides.artifact.dequantization import dequantized_weights
from parity_tests.harness.sides.artifact.probe import layers_of
from qwen3vl_export.artifact import whole_name
from qwen3vl_export.contract import DECODER, LOGITS, NUM_LOGITS_TO_KEEP
from qwen3vl_export.packaging.decoders import write_decoders
from qwen3vl_export.packaging.head_blocks import LARGEST_RESTORED, split_head
from qwen3vl_export.promise import GENAI, TRANSFORMERS_JS, second_decoder
from qwen3vl_export.runtime.arrays import Floats

QUANTIZED = ("tiny-int8", "tiny-web")
WEIGHTS = "weights"
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
FILE = f"onnx/{DECODER}.onnx"


def in_blocks(recipe: str, folder: Path) -> tuple[Path, Path]:
    """A tiny decoder, and the same one with a head in blocks."""
    artifact = build_once(recipe)
    return artifact / FILE, copy_with_blocks(artifact, folder / "blocks") / FILE


def stored(graph: GraphProto) -> dict[str, list[tuple[str, int, int]]]:
    """File, first byte and byte after the last one of each tensor, in order; blocks under their weight's name."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = ExternalDataInfo(tensor)
            start, length = place.offset or 0, place.length or 0
            places.setdefault(whole_name(tensor.name), []).append((place.location, start, start + length))
    return places


def head_alone(count: int, width: int, bits: int = 4, half: bool = True, level: int = 0, block: int = 32) -> ModelProto:
    """A decoder that is a head and no more; its weights are said to be in the file `WEIGHTS`."""
    blocks, dtype = width // block, TensorProto.FLOAT16 if half else TensorProto.FLOAT
    tensors, offset = [], 0
    for part, kind, dims, size in (
        ("quantized", TensorProto.UINT8, [count, blocks, block * bits // 8], count * width * bits // 8),
        ("scales", dtype, [count, blocks], (2 if half else 4) * count * blocks),
        ("zero_points", TensorProto.UINT8, [count * blocks * bits // 8], count * blocks * bits // 8),
    ):
        tensor = TensorProto(name=f"lm_head.weight.{part}", data_type=kind, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        offset += size
    names = ["x", *(tensor.name for tensor in tensors)]
    attributes = {"N": count, "K": width, "bits": bits, "block_size": block, "accuracy_level": level}
    head = helper.make_node("MatMulNBits", names, ["rows"], "head", domain="com.microsoft", **attributes)
    guard = helper.make_node("Reshape", ["rows", "shape"], [LOGITS])
    keep = helper.make_tensor(NUM_LOGITS_TO_KEEP, TensorProto.INT64, [], [0])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, count])
    x, logits = (helper.make_tensor_value_info(name, dtype, None) for name in ("x", LOGITS))
    graph = helper.make_graph([head, guard], "decoder", [x], [logits], [*tensors, shape, keep])
    return helper.make_model(graph, ir_version=10, opset_imports=OPSETS)


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_blocks_are_the_bytes_of_the_whole_head(recipe: str, tmp_path: Path) -> None:
    whole, split = (stored(onnx.load(path, load_external_data=False).graph) for path in in_blocks(recipe, tmp_path))
    assert whole.keys() == split.keys()
    parts = {name for name, blocks in split.items() if len(blocks) > 1}
    assert {name.rpartition(".")[0] for name in parts} == {"lm_head.weight"}
    for name, blocks in split.items():
        assert all(before[2] == after[1] for before, after in pairwise(blocks))
        assert [(blocks[0][0], blocks[0][1], blocks[-1][2])] == whole[name]


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize(
    ("bits", "half", "level"), [(4, True, 0), (4, False, 0), (4, False, 4), (8, False, 0), (8, False, 4)]
)
def test_a_head_in_blocks_computes_the_same_bit_for_bit(
    bits: int, half: bool, level: int, rows: int, tmp_path: Path
) -> None:
    random, count, width, floats = np.random.default_rng(0), 1000, 256, np.float16 if half else np.float32
    integers = random.integers(0, 256, (2, count * width * bits // 8), np.uint8)
    scales = random.uniform(0.001, 0.01, count * width // 32).astype(floats)
    (tmp_path / WEIGHTS).write_bytes(integers[0].tobytes() + scales.tobytes() + integers[1].tobytes())
    x = random.standard_normal((rows, width)).astype(floats)
    results = []
    for name, largest in (("whole", LARGEST_RESTORED), ("blocks", 4 * width * 256)):
        model = head_alone(count, width, bits, half, level)
        split_head(model.graph, largest)
        onnx.save(model, tmp_path / name)
        logits: Floats = ort.InferenceSession(tmp_path / name).run([LOGITS], {"x": x})[0]
        results.append(logits)
    assert results[0].shape == (rows, count) and np.abs(results[0]).max() > 1
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_who_reads_a_graph_finds_the_whole_head(recipe: str, tmp_path: Path) -> None:
    """Its weight, and the layer of its name between the same two values."""
    whole, split = in_blocks(recipe, tmp_path)
    expected = list(dequantized_weights(whole))
    weights = list(dequantized_weights(split))
    assert [entry[:2] for entry in weights] == [entry[:2] for entry in expected]
    for (*_, rows), (*_, expected_rows) in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(rows, expected_rows)
    layers, expected_layers = (layers_of(onnx.load(path, load_external_data=False)) for path in (split, whole))
    assert layers == expected_layers and "lm_head" in {layer.module for layer in layers}


@pytest.mark.parametrize(("count", "width"), [(151_936, 2048), (151_936, 2560), (151_936, 4096), (1000, 1 << 20)])
def test_no_block_is_restored_to_more_than_a_layer_takes(count: int, width: int) -> None:
    """Unless 128 rows take more, of a width that no model has."""
    graph = head_alone(count, width).graph
    split_head(graph)
    sizes = [
        {attribute.name: attribute.i for attribute in node.attribute}["N"]
        for node in graph.node
        if node.op_type == "MatMulNBits"
    ]
    assert sum(sizes) == count and all(size % 128 == 0 for size in sizes[:-1])
    assert max(sizes) <= max(128, LARGEST_RESTORED // (4 * width))
    assert len(sizes) <= -(-count // max(128, LARGEST_RESTORED // (4 * width) - 127))  # and no more than it takes


@pytest.mark.parametrize(
    ("recipe", "largest"), [("tiny", 1), ("tiny-fp16", 1), ("tiny-embedding", 1), ("tiny-int8", LARGEST_RESTORED)]
)
def test_other_heads_and_small_ones_are_left_as_they_are(recipe: str, largest: int) -> None:
    model = onnx.load(build_once(recipe) / FILE, load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    split_head(model.graph, largest)
    assert model.SerializeToString(deterministic=True) == before


def test_transformers_js_gets_the_head_in_blocks_and_genai_the_whole_one(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    model = head_alone(151_936, 2048)
    onnx.save(model, tmp_path / FILE)
    write_decoders(tmp_path, (GENAI, TRANSFORMERS_JS), [{DECODER: {"file": FILE}}], [{DECODER: {"file": FILE}}])
    assert onnx.load(tmp_path / second_decoder(FILE), load_external_data=False) == model
    nodes = onnx.load(tmp_path / FILE, load_external_data=False).graph.node
    assert [node.op_type for node in nodes] == ["MatMulNBits"] * 5 + ["Concat", "Reshape"]
