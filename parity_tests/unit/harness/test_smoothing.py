"""Smoothed towers: their factors are found, both sides then agree at every layer, and a half-folded one is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from parity_tests.faults.catalogue import Fault, change_weights
from parity_tests.faults.weights import Weights
from parity_tests.harness.checks.dequantized import dequantized_bench, load_dequantized_weights
from parity_tests.harness.diagnosis.layer_trace import trace_vision
from parity_tests.harness.judging.outcome import Outcome
from parity_tests.harness.sides.artifact.smoothing import find_exponents
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import Store
from parity_tests.harness.sides.pytorch.results import Deferred
from parity_tests.harness.verify import open_bench, run
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.contract import VISION_ENCODER, Facts
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.weights.packing import PerColumn
from qwen3vl_export.recipe import load_recipe

from ...fixtures.outlier_checkpoint import write_outlier_checkpoint

CASE = "users-case-16x16-after-24x24"
OWN_WEIGHTS = ("weights", "dequantized_vision")
NAMES = (CASE, VISION_ENCODER)
UNFOLDED = {  # a parameter that is stored as the checkpoint has it, and so not as the next product expects
    "norm before queries, keys and values": "blocks.1.norm1.weight",
    "bias of a norm before an MLP": "blocks.2.norm2.bias",
    "bias of the values": "blocks.0.attn.qkv.bias",
    "norm before merging": "visual.merger.norm.weight",
    "norm after merging": "deepstack_merger_list.1.norm.weight",
}


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_outlier_checkpoint(tmp_path_factory.mktemp("outliers"))


PER_TOKEN = "{method: int8_dynamic, activations: per_token, smoothing: weights}"
IN_BLOCKS = "{method: int8, accuracy_level: 4, smoothing: weights}"


def build_tower(outliers: Path, plan: str, work: Path) -> Path:
    (work / "smoothed.yaml").write_text(
        f"checkpoint: {{source: {outliers}}}\ngraphs: [{VISION_ENCODER}]\n"
        f"quantization: {{vision_encoder: {plan}}}\nparity: {{matrix: quick}}\n",
        "utf-8",
    )
    return build(load_recipe(work / "smoothed.yaml"), out=work / "smoothed", log=lambda line: None)


@pytest.fixture(scope="module")
def smoothed(outliers: Path, tmp_path_factory: pytest.TempPathFactory, share_traces: None) -> Path:
    return build_tower(outliers, PER_TOKEN, tmp_path_factory.mktemp("smoothed"))


@pytest.fixture(scope="module")
def in_blocks(outliers: Path, tmp_path_factory: pytest.TempPathFactory, share_traces: None) -> Path:
    return build_tower(outliers, IN_BLOCKS, tmp_path_factory.mktemp("in-blocks"))


def outcomes(artifact: Path, checkpoint: Path, *stages: str) -> dict[str, Outcome]:
    bench = open_bench(artifact, "quick", checkpoint)
    chosen = run(bench, "quick", only=lambda check: check.stage in stages and check.name in NAMES).outcomes
    assert {outcome.stage for outcome in chosen} == set(stages)
    return {outcome.stage: outcome for outcome in chosen}


def test_what_a_weight_was_multiplied_with_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.zeros(96), torch.randint(-2, 6, (64,), generator=generator).float()
    rows[64:] = torch.randint(-6, 3, (32,), generator=generator).float()
    weight = torch.randn(96, 64, generator=generator) * (-columns).exp2()  # small where activations are large
    _, dequantized = PerColumn(ir.DataType.FLOAT).pack(weight * (rows[:, None] + columns).exp2())
    found = find_exponents("blocks.0.attn.qkv", dequantized.numpy(), weight.numpy())
    assert torch.equal(found.columns, columns) and torch.equal(found.rows, rows)


def test_a_weight_of_zeros_was_multiplied_with_nothing() -> None:
    found = find_exponents("blocks.0.attn.qkv", np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32))
    assert not found.rows.any() and not found.columns.any()


@pytest.mark.parametrize("tower", ["smoothed", "in_blocks"])
def test_a_smoothed_tower_passes(tower: str, outliers: Path, request: pytest.FixtureRequest) -> None:
    results = outcomes(request.getfixturevalue(tower), outliers, *OWN_WEIGHTS, "rounded_vision", "vision")
    assert [outcome.message for outcome in results.values() if not outcome.passed] == []


def test_every_layer_of_a_smoothed_tower_agrees(smoothed: Path, outliers: Path) -> None:
    bench = dequantized_bench(open_bench(smoothed, "quick", outliers))
    trail = trace_vision(bench, next(case for case in bench.cases if case.name == CASE))
    assert trail is not None and trail.first is None
    assert {"blocks.0.norm1", "blocks.0.attn.qkv", "merger.norm"} <= {point.module for point in trail.points}


def test_a_streamed_pytorch_computes_the_same(smoothed: Path, outliers: Path, tmp_path: Path) -> None:
    """A module at a time, of which a merger's norm is one and the product after it another."""
    change = partial(load_dequantized_weights, open_artifact(smoothed))
    whole = Reference(outliers, change=change)
    streamed = Reference(outliers, Store(tmp_path / "cache", "smoothed"), change, streamed=True)
    pixels = np.random.default_rng(0).uniform(-1, 1, (64, 1536)).astype(np.float32)
    pictures = pixels, np.array([[1, 8, 8]])
    with pytest.raises(Deferred):
        streamed.vision(*pictures)
    streamed.settle()
    np.testing.assert_array_equal(streamed.vision(*pictures), whole.vision(*pictures))


@pytest.mark.parametrize(
    ("tower", "kind"), [*(("smoothed", kind) for kind in UNFOLDED), ("in_blocks", "bias of a norm before an MLP")]
)
def test_a_tower_smoothed_by_half_fails(
    tower: str, kind: str, outliers: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = open_checkpoint(str(outliers))
    (name,) = [name for name in checkpoint.tensors if name.endswith(UNFOLDED[kind])]

    def restore(weights: Weights, facts: Facts) -> None:
        weights(UNFOLDED[kind])[:] = checkpoint.read(name).float().numpy()

    broken = Fault(kind, "", "", change=partial(change_weights, VISION_ENCODER, restore)).plant(
        request.getfixturevalue(tower), tmp_path / "broken"
    )
    assert not outcomes(broken, outliers, "dequantized_vision")["dequantized_vision"].passed


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("blocks.0.attn.qkv.weight", "dequantized_vision"),  # rows of the values may be of any scale, by themselves
        ("blocks.1.attn.proj.weight", "weights"),
        ("blocks.1.mlp.linear_fc1.weight", "weights"),
        ("blocks.1.mlp.linear_fc2.weight", "weights"),
        ("patch_embed.proj.weight", "weights"),
    ],
)
def test_rows_of_another_scale_fail(weight: str, stage: str, smoothed: Path, outliers: Path, tmp_path: Path) -> None:
    def double(weights: Weights, facts: Facts) -> None:
        weights(f"{weight}.scales")[-5:] *= 2

    broken = Fault("doubled", "", "", change=partial(change_weights, VISION_ENCODER, double)).plant(
        smoothed, tmp_path / "broken"
    )
    assert not outcomes(broken, outliers, stage)[stage].passed


def test_a_weight_that_is_off_in_one_channel_fails(smoothed: Path, outliers: Path, tmp_path: Path) -> None:
    def change(weights: Weights, facts: Facts) -> None:
        integers = weights("blocks.1.mlp.linear_fc1.weight.quantized")  # [K, N]
        integers[3, 7] = -integers[3, 7] - 9

    broken = Fault("changed", "", "", change=partial(change_weights, VISION_ENCODER, change)).plant(
        smoothed, tmp_path / "broken"
    )
    assert not outcomes(broken, outliers, "weights")["weights"].passed
