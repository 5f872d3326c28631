"""Which operators stand between the inputs and outputs of a graph: those that onnxruntime's WebGPU provider runs.

An operator that it has not runs on CPU, and the GPU waits for its inputs and results to be copied. Which it has was
recorded from its log (`scripts/record_webgpu_operators.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, parser

from qwen3vl_export.contract import DECODER, EMBED_TOKENS, VISION_ENCODER
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.opsets import BRANCHING
from qwen3vl_export.exporter.trace import OPSET

from ...fixtures.activations import OPERATORS, activation_nodes, all_nodes, bodies, operator_of
from ...fixtures.paths import TINY

RECORDED = json.loads(OPERATORS.read_text("utf-8"))
RECIPES = ("tiny", "tiny-fp16", "tiny-int8", "tiny-int4")
RANGE = Counter({"IsNaN": 1})  # of the guard of float16 graphs: a failure has to reach the CPU


def off_list(model: ModelProto) -> Counter[str]:
    """The operators that read activations and that WebGPU does not run."""
    operators = [operator_of(node, model) for node in activation_nodes(model)]
    return Counter(op for opset, op in operators if op not in RECORDED["gpu"].get(opset, ()))


@pytest.mark.parametrize("name", [VISION_ENCODER, EMBED_TOKENS, DECODER])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_activation_leaves_the_gpu(recipe: str, name: str, built: Callable[[str], Path]) -> None:
    model = onnx.load(built(recipe) / "onnx" / f"{name}.onnx", load_external_data=False)
    is_half = model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert off_list(model) == (RANGE if is_half and name != EMBED_TOKENS else Counter())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_layer_of_the_tower_has_one_attention_where_frames_are_alike(
    recipe: str, built: Callable[[str], Path]
) -> None:
    model = onnx.load(built(recipe) / "onnx" / f"{VISION_ENCODER}.onnx", load_external_data=False)
    depth = open_checkpoint(str(TINY)).config.vision_config.depth
    ops = Counter(node.op_type for node in activation_nodes(model))
    assert ops["If"] == ops["MultiHeadAttention"] == depth
    assert not {"Loop", "SequenceEmpty", "SequenceInsert", "ConcatFromSequence"} & set(ops)
    loops = [node for node in all_nodes(model.graph) if node.op_type == "Loop"]
    branches = [
        branch for node in model.graph.node if node.op_type == "If" for branch in bodies(node, but="then_branch")
    ]
    assert len(loops) == sum(node.op_type == "Loop" for branch in branches for node in branch.node) == depth


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_declares_an_older_opset_means_the_same_in_it(recipe: str, built: Callable[[str], Path]) -> None:
    """The tower is traced at another one: its operators have the same inputs, outputs and attributes in both."""
    model = onnx.load(built(recipe) / "onnx" / f"{VISION_ENCODER}.onnx", load_external_data=False)
    (opset,) = (opset.version for opset in model.opset_import if not opset.domain)
    assert opset == BRANCHING
    for op in {node.op_type for node in all_nodes(model.graph) if not node.domain}:
        old, new = (onnx.defs.get_schema(op, version, "") for version in (opset, OPSET))
        assert [(value.name, value.option) for value in (*old.inputs, *old.outputs)] == [
            (value.name, value.option) for value in (*new.inputs, *new.outputs)
        ], op
        for name, attribute in new.attributes.items():
            assert old.attributes[name].default_value == attribute.default_value, (op, name)


def test_an_operator_that_webgpu_has_not_is_seen() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>
        g (float[n, 8] x, int64[2] s, bool c) => (float[m, 8] y) {
            q = Reshape (x, s)
            count = Shape (q)
            none = SequenceEmpty ()
            some = SequenceInsert (none, q)
            all = ConcatFromSequence <axis = 0> (some)
            y = If (c) <
                then_branch = a () => (float[m, 8] once) { once = TopK <axis = 0> (all, count) },
                else_branch = b () => (float[m, 8] twice) { twice = Loop (all, c) <body = d (int64 i) => () {}> }
            >
        }"""
    )
    assert off_list(model) == {"SequenceInsert": 1, "ConcatFromSequence": 1, "TopK": 1}
