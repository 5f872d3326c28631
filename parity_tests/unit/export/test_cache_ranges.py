"""Scales of a cache in 8 bits: what prompts reach, whatever the position, and what no prompt can exceed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from parity_tests.harness.sides.pytorch.reference import Reference
from qwen3vl_export.exporter.calibration import plan_calibration
from qwen3vl_export.exporter.calibration.cache_ranges import HEADROOM, LARGEST_INTEGER, CacheRanges
from qwen3vl_export.exporter.calibration.prompts import PROMPTS_FILE
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.recipe import load_recipe

from ...fixtures.moe_checkpoint import write_moe_checkpoint
from ...fixtures.paths import TINY

HEADS, TOKENS, SIZE = 2, 40, 16
GENERATOR = torch.Generator().manual_seed(7)


def rotate(keys: Tensor, angles: Tensor) -> Tensor:
    """[1, K, S, E] by an angle [S, E / 2] for each pair, as rotary embeddings do."""
    first, second = keys.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def some_keys() -> Tensor:
    return torch.randn(1, HEADS, TOKENS, SIZE, generator=GENERATOR)


def test_a_scale_holds_at_every_position() -> None:
    keys, reached = some_keys(), torch.zeros(HEADS, SIZE)
    scales = []
    for _ in range(8):
        rotated = rotate(keys, torch.rand(TOKENS, SIZE // 2, generator=GENERATOR) * 7)
        ranges = CacheRanges()
        assert ranges.update(rotated, keys, 0) == (rotated, keys)
        scales.append(ranges.scales[0][0])
        reached = torch.maximum(reached, rotated.abs().amax(dim=(0, 2)))
    np.testing.assert_allclose(np.stack(scales), np.broadcast_to(scales[0], (8, 1, HEADS, 1, SIZE)), rtol=1e-5)
    assert (reached.numpy() <= LARGEST_INTEGER / HEADROOM * scales[0][0, :, 0] * (1 + 1e-5)).all()


@pytest.mark.parametrize("loudness", [1e-3, 1.0, 1e6])
def test_no_prompt_exceeds_the_bound_of_keys(loudness: float) -> None:
    """Neither with keys of one channel alone, which are the longest that a norm leaves."""
    norm = Qwen3VLTextRMSNorm(SIZE)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(SIZE, generator=GENERATOR) * 3)
    ranges = CacheRanges()
    ranges.bound_keys(0, norm.weight)
    ranges.update(torch.full((1, HEADS, 1, SIZE), 1e9), torch.ones(1, HEADS, 1, SIZE), 0)  # the bound alone counts
    (keys, _) = ranges.scales[0]
    single = torch.eye(SIZE)[None, None].expand(1, HEADS, SIZE, SIZE)
    with torch.no_grad():
        for rows in (loudness * some_keys(), loudness * single):
            angles = torch.rand(rows.shape[2], SIZE // 2, generator=GENERATOR) * 7
            integers = rotate(norm(rows), angles).numpy() / keys
            assert np.abs(integers).max() <= LARGEST_INTEGER * (1 + 1e-5)


def test_what_no_prompt_uses_has_a_scale() -> None:
    values = some_keys()
    values[..., 3] = 0
    ranges = CacheRanges()
    ranges.update(torch.zeros_like(values), values, 0)
    _, scales = ranges.scales[0]
    assert (scales[..., 3] > 0).all() and (scales[..., 3] < scales.max(axis=-1) / 100).all()


@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_every_layer_is_measured_with_every_prompt(tmp_path: Path, experts: bool) -> None:
    """The scales are those of the keys and values that transformers itself keeps."""
    checkpoint = write_moe_checkpoint(tmp_path / "moe") if experts else TINY
    lines = (TINY.parents[1] / "calibration" / PROMPTS_FILE).read_text("utf-8").splitlines()
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    about_text = [line for line in lines if not json.loads(line)["images"]]
    (prompts / PROMPTS_FILE).write_text("\n".join(about_text), "utf-8")
    file = tmp_path / "cached.yaml"
    file.write_text(
        f'checkpoint: {{source: {checkpoint}}}\ncalibration: {{source: {prompts}}}\nmin_onnxruntime: "1.27"\n'
        "graphs: [decoder_model_merged]\nquantization: {cache: {method: int8}}\n",
        "utf-8",
    )
    calibration = plan_calibration(load_recipe(file), open_checkpoint(str(checkpoint)), tmp_path / "work", print)
    assert calibration is not None and calibration.settings is None
    model = Reference(checkpoint).model
    expected = CacheRanges()
    with torch.no_grad():
        for layer, module in enumerate(model.model.language_model.layers):
            expected.bound_keys(layer, module.self_attn.k_norm.weight)
        for prompt in calibration.prompts.prepared:
            cache = DynamicCache()
            model(torch.from_numpy(prompt.input_ids), past_key_values=cache)
            for layer, kept in enumerate(cache.layers):
                expected.update(kept.keys, kept.values, layer)
    assert len(calibration.cache_scales) == len(expected.scales) == len(model.model.language_model.layers)
    for parts, truth in zip(calibration.cache_scales, expected.scales, strict=True):
        np.testing.assert_allclose(parts, truth, rtol=1e-4)
