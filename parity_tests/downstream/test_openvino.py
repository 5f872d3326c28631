"""OpenVINO, a runtime that shares no code with onnxruntime, reads the graphs of the portable recipe and agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import pytest

from qwen3vl_export import contract
from qwen3vl_export.runtime.arrays import Floats, Ints

from ..fixtures.tiny_builds import build_once
from ..harness.cases.matrix import Case
from ..harness.checks.stages import logits_finding, vision_finding
from ..harness.judging.measures import differences, logit_closeness
from ..harness.judging.outcome import Finding, judge
from ..harness.sides.bench import Bench
from ..harness.verify import open_bench

PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}  # its default may be bfloat16
Run = Callable[..., list[Floats]]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return open_bench(build_once("tiny-portable"))


@pytest.fixture(scope="module")
def graph(bench: Bench) -> Callable[[str], Run]:
    """A graph of the artifact as a function from its named inputs to all outputs."""
    core = openvino.Core()
    compiled: dict[str, Any] = {}

    def get(name: str) -> Run:
        if name not in compiled:
            compiled[name] = core.compile_model(str(bench.artifact.graph_path(name)), "CPU", PRECISION)

        def run(**inputs: Any) -> list[Floats]:
            outputs = compiled[name](inputs)
            return [np.array(outputs[index]) for index in range(len(outputs))]

        return run

    return get


def cases(bench: Bench) -> list[Case]:
    return [case for case in bench.matrix.of_tier("quick") if case.has_pictures or case.is_vision_only]


def test_the_vision_encoder_agrees(bench: Bench, graph: Callable[[str], Run]) -> None:
    selected = cases(bench)
    assert len(selected) >= 8
    messages = []
    for case in selected:
        pixels, grid = bench.vision_inputs(case)
        (features,) = graph(contract.VISION_ENCODER)(pixel_values=pixels, image_grid_thw=grid)
        finding = vision_finding(features, bench.reference.vision(pixels, grid), bench.reference.blocks, grid)
        messages.append(judge("vision", case.name, finding, bench.profile, 0.0).message)
    assert not any(messages), messages


def test_the_embeddings_agree(bench: Bench, graph: Callable[[str], Run]) -> None:
    messages = []
    for case in cases(bench):
        if case.is_vision_only:
            continue
        inputs = bench.inputs(case)
        expected = bench.reference.prefill(inputs)
        (rows,) = graph(contract.EMBEDDINGS)(input_ids=inputs.input_ids, image_features=expected.image_features)
        finding = Finding({"differences": differences(rows, expected.inputs_embeds)}, compared=rows.size)
        messages.append(judge("embeddings", case.name, finding, bench.profile, 0.0).message)
    assert messages and not any(messages), messages


def test_the_decoder_agrees(bench: Bench, graph: Callable[[str], Run]) -> None:
    """Logits of the prompt, then of one token more on the cache that OpenVINO itself returned."""
    facts = bench.artifact.manifest.facts
    names = [(i, part) for i in range(facts.num_hidden_layers) for part in ("key", "value")]
    messages = []
    for case in bench.matrix.of_tier("quick"):
        if case.is_vision_only:
            continue
        inputs = bench.inputs(case)
        start, truth = bench.reference.prefill(inputs), bench.reference.generate(inputs, bench.matrix.tokens_of(case))
        mask = inputs.attention_mask
        empty = np.zeros((len(mask), facts.num_key_value_heads, 0, facts.head_dim), np.float32)
        logits, *cache = graph(contract.DECODER)(
            inputs_embeds=start.inputs_embeds,
            attention_mask=mask,
            position_ids=start.position_ids,
            num_logits_to_keep=np.array(0),
            **{contract.past_name(*name): empty for name in names},
        )
        finding = logits_finding(logits, start.logits, inputs)
        messages.append(judge("prefill", case.name, finding, bench.profile, 0.0).message)
        position = start.rope_deltas + mask.sum(1, keepdims=True)
        logits, *_ = graph(contract.DECODER)(
            inputs_embeds=bench.embed(truth.ids[:, :1], bench.no_features()),
            attention_mask=np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1),
            position_ids=np.broadcast_to(position, (3, len(mask), 1)).copy(),
            num_logits_to_keep=np.array(0),
            **{contract.past_name(*name): array for name, array in zip(names, cache, strict=True)},
        )
        finding = Finding(logit_closeness(logits[:, 0], truth.logits[:, 1]), compared=logits.size)
        messages.append(judge("decode", case.name, finding, bench.profile, 0.0).message)
    assert messages and not any(messages), messages


def test_a_grid_that_does_not_fit_the_patches_is_refused(bench: Bench, graph: Callable[[str], Run]) -> None:
    pixels = np.zeros((16, bench.artifact.manifest.facts.patch_dim), np.float32)
    grid: Ints = np.array([[1, 4, 6]], np.int64)
    with pytest.raises(RuntimeError):
        graph(contract.VISION_ENCODER)(pixel_values=pixels, image_grid_thw=grid)
