"""Integers that `method: source` cannot carry over are refused by name, before anything is traced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3vl_export.errors import CheckpointError, RecipeError
from qwen3vl_export.exporter import skeletons
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.plan import plan_build
from qwen3vl_export.exporter.quantize.source import find_source_weights
from qwen3vl_export.recipe import load_recipe

from ...fixtures.checkpoint_edits import edit_tensors
from ...fixtures.paths import TINY
from ...fixtures.quantized_checkpoints import (
    FORMS,
    WriteForm,
    packed,
    write_quantized_checkpoint,
)
from .test_source_method import source_recipe, write_decoder


def refusal_of(checkpoint: Path, dtype: str = "bfloat16", **settings: Any) -> str:
    with pytest.raises((CheckpointError, RecipeError)) as caught:
        find_source_weights(source_recipe(dtype, **settings), open_checkpoint(str(checkpoint)), lambda line: None)
    return str(caught.value)


DOWN = "language_model.layers.0.mlp.down_proj.weight cannot be carried over by method: source: "


ADVICE = '. Restore such weights, keep: ["*.down_proj.weight"], or quantize all anew, method: int4 or int8'


NOT_INTEGERS = "it is not stored as integers of 4 or 8 bits"


NO_BLOCKS = "16 neighbouring columns, the smallest block, do not always share a scale"


REORDERED = f"{NO_BLOCKS}, since they are in activation order (desc_act)"


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("fp8", NOT_INTEGERS),
        ("float8-rows", NOT_INTEGERS),
        ("gptq-desc-act", REORDERED),
        ("packed-actorder", REORDERED),
        ("groups-of-8", NO_BLOCKS),
    ],
)
def test_what_no_operator_takes_is_named(
    form: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "groups-of-8", packed(8))
    write_quantized_checkpoint(tmp_path / form, form)
    assert refusal_of(tmp_path / form) == f"{tmp_path / form}: {DOWN}{reason}{ADVICE}"


@pytest.mark.parametrize("call", [plan_build, build])
def test_a_refusal_comes_before_any_tracing(
    write: WriteForm, call: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeletons, "trace", lambda *_: pytest.fail("traced"))
    directory, _ = write("gptq-desc-act")
    with pytest.raises(CheckpointError, match=r"in activation order \(desc_act\)"):
        call(load_recipe("tiny-source"), checkpoint=str(directory), out=tmp_path / "out", log=lambda line: None)


def test_scales_that_half_precision_does_not_hold_are_named(write: WriteForm, tmp_path: Path) -> None:
    """bfloat16 has numbers below those of float16; a graph in float32 holds them all."""
    assert write_decoder(tmp_path / "right", write("gptq")[0], dtype="float32").is_file()
    directory = Path(shutil.copytree(write("packed")[0], tmp_path / "packed"))
    name = "model.language_model.layers.0.mlp.down_proj.weight_scale"
    edit_tensors(directory, lambda tensors: tensors.update({name: tensors[name] * 1e-5}))
    assert "a scale is not exact in float16, in dtype: float32 and bfloat16 it is" in refusal_of(directory, "float16")
    assert write_decoder(tmp_path / "out", directory).is_file()


def test_zero_points_of_more_bits_are_named(write: WriteForm, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(write("packed-asymmetric")[0], tmp_path / "packed"))
    name = "model.language_model.layers.0.mlp.down_proj.weight_zero_point"
    shape = (128, 6)
    for zero_point, is_carried in ((7, True), (-8, True), (8, False), (-9, False)):
        points = torch.full(shape, zero_point, dtype=torch.int8)
        edit_tensors(directory, lambda tensors, points=points: tensors.update({name: points}))  # type: ignore[misc]
        if is_carried:
            assert write_decoder(tmp_path / "out", directory).is_file()
        else:
            assert "a zero point is no integer of 4 bits" in refusal_of(directory)


def test_experts_that_one_operator_does_not_take_are_named(single_experts: Path, tmp_path: Path) -> None:
    write_quantized_checkpoint(tmp_path / "eight", "gptq-8-bits", single_experts)
    said = refusal_of(tmp_path / "eight")
    assert "onnxruntime's operator for 8-bit experts rounds activations as well. Restore such weights, " in said
    assert 'keep: ["*.mlp.experts.*"]' in said
    write_quantized_checkpoint(tmp_path / "four", "gptq", single_experts)
    said = refusal_of(tmp_path / "four", keep=("*.mlp.experts.down_proj",))
    assert (
        "experts.gate_up_proj cannot be carried over by method: source: the other matrices of its experts are" in said
    )

    def round_one(tensors: dict[str, Tensor]) -> None:
        module = "model.language_model.layers.2.mlp.experts.3.up_proj"
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{module}.{part}"]
        tensors[f"{module}.weight"] = torch.zeros(256, 128)

    edit_tensors(tmp_path / "four", round_one)
    assert f"layers.2.mlp.experts.gate_up_proj cannot be carried over by method: source: {NOT_INTEGERS}" in refusal_of(
        tmp_path / "four"
    )


def test_a_checkpoint_without_integers_is_refused() -> None:
    assert refusal_of(TINY) == (
        "tiny-source: decoder_model_merged: method: source, and tiny has no integers to carry over. "
        "Choose another precision, such as int4, or another method"
    )
