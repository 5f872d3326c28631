"""GPTQ: its arithmetic, the layer-by-layer walk against PyTorch, what it gains, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from parity_tests.harness.judging.measures import kl_divergence
from parity_tests.harness.sides.pytorch.inputs import Inputs
from parity_tests.harness.sides.pytorch.reference import Reference
from qwen3vl_export.artifact import open_artifact
from qwen3vl_export.errors import BuildError, RecipeError
from qwen3vl_export.exporter import calibration
from qwen3vl_export.exporter.calibration import PromptState, calibrate
from qwen3vl_export.exporter.calibration.gptq import Hessian, factor, output_power, quantize_gptq
from qwen3vl_export.exporter.calibration.layers import TEXT_PREFIX, build_text_model, embed_prompts, loaded_weights
from qwen3vl_export.exporter.calibration.prompts import PROMPTS_FILE, Prompts, read_prompts
from qwen3vl_export.exporter.calibration.results import CalibratedRows, CalibrationResults
from qwen3vl_export.exporter.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_export.exporter.checkpoint.names import members_of
from qwen3vl_export.exporter.pipeline import build
from qwen3vl_export.exporter.weights import blockwise
from qwen3vl_export.exporter.weights.packing import DATA, SCALES, Blockwise
from qwen3vl_export.exporter.weights.quantized_rows import QuantizedPacking
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.recipe.quantize import Int4

from ...fixtures.loud_checkpoint import write_loud_checkpoint
from ...fixtures.moe_checkpoint import write_moe_checkpoint
from ...fixtures.paths import TINY

FOLDER = TINY.parents[1] / "calibration"
SETTINGS = Int4(method="int4", block_size=32, symmetric=False, algorithm="gptq", keep=("lm_head.weight",))


def make_correlated(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, Hessian]:
    """A weight, and the Hessian of inputs that share most of their directions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=generator)
    inputs = torch.randn(256, width // 4, generator=generator) @ mixing
    hessian = Hessian(width)
    hessian.add(inputs[:100])
    hessian.add(inputs[100:])
    return torch.randn(rows, width, generator=generator), hessian


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_change_less_than_by_the_best_rounding_of_weights(bits: int, symmetric: bool) -> None:
    rows, hessian = make_correlated(48, 128)
    searched = blockwise.quantize_nearest(rows, bits, 32, symmetric, True, torch.float32)
    searched_error = output_power(rows - searched.dequantized, hessian)
    packed = quantize_gptq(rows, factor(hessian), bits, 32, symmetric, torch.float32)
    assert output_power(rows - packed.dequantized, hessian) < 0.36 * searched_error


def test_uncorrelated_inputs_round_to_nearest() -> None:
    rows, _ = make_correlated(16, 64)
    uncorrelated = Hessian(64)
    uncorrelated.add(torch.eye(64))
    packed = quantize_gptq(rows, factor(uncorrelated), 4, 32, True, torch.float32)
    nearest = blockwise.quantize_nearest(rows, 4, 32, True, True, torch.float32).dequantized
    assert torch.equal(packed.dequantized, nearest)


def test_rows_do_not_depend_on_one_another() -> None:
    rows, hessian = make_correlated(24, 64)
    factored = factor(hessian)
    whole = quantize_gptq(rows, factored, 4, 32, False, torch.float32)
    part = quantize_gptq(rows[8:16], factored, 4, 32, False, torch.float32)
    assert torch.equal(whole.data[8:16], part.data)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
def test_rows_that_are_no_whole_blocks_are_padded_with_zero(symmetric: bool) -> None:
    rows, hessian = make_correlated(8, 80)
    packed = quantize_gptq(rows, factor(hessian), 4, 32, symmetric, torch.float32)
    assert packed.dequantized.shape == rows.shape and packed.data.shape == (8, 3, 16)
    unpacked = blockwise.unpack_rows(packed.data, packed.scales, packed.zero_points, 4, 96)
    assert torch.equal(unpacked.dequantized[:, :80], packed.dequantized) and not unpacked.dequantized[:, 80:].any()


def test_inputs_that_are_always_zero_disturb_nobody() -> None:
    rows, _ = make_correlated(8, 64)
    hessian = Hessian(64)
    hessian.add(torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) * (torch.arange(64) != 5))
    assert quantize_gptq(rows, factor(hessian), 4, 32, True, torch.float32).dequantized.isfinite().all()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero-points"])
def test_results_are_read_back_as_they_were_found(symmetric: bool, tmp_path: Path) -> None:
    rows, hessian = make_correlated(10, 96)
    packing = Blockwise(4, 32, symmetric, True, ir.DataType.FLOAT)
    packed = quantize_gptq(rows, factor(hessian), 4, 32, symmetric, torch.float32)
    results = CalibrationResults(tmp_path)
    results.create("w", 10, 96, packing)
    results.write("w", 0, packed)
    arrays, dequantized = QuantizedPacking(packing, CalibratedRows(results, "w")).pack(rows[4:7], first=4)
    assert torch.equal(dequantized, packed.dequantized[4:7])
    assert torch.equal(arrays[DATA], packed.data[4:7]) and torch.equal(arrays[SCALES], packed.scales[4:7])


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return open_checkpoint(str(TINY))


@pytest.fixture(scope="module")
def prompts(tiny: Checkpoint) -> Prompts:
    return read_prompts(FOLDER, tiny)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TINY)


def inputs_of(prompt: Any) -> Inputs:
    return Inputs(prompt.input_ids, prompt.attention_mask, prompt.pixel_values, prompt.image_grid_thw)


def test_the_walk_through_the_layers_is_the_model(tiny: Checkpoint, prompts: Prompts, reference: Reference) -> None:
    """Pictures through the tower, rows through every layer, with one layer's weights at a time."""
    prompt = next(p for p in prompts.prepared if len(p.image_grid_thw) == 2)
    expected = reference.prefill(inputs_of(prompt))
    with torch.no_grad():
        (rows,) = embed_prompts(tiny, [prompt])
        model = build_text_model(tiny)
        hidden, *maps = rows.split(tiny.facts.hidden_size, dim=-1)
        state = PromptState(hidden[None], tuple(maps), model.rotary_emb(hidden, torch.from_numpy(prompt.position_ids)))
        for index, layer in enumerate(model.layers):
            with loaded_weights(layer, tiny, f"{TEXT_PREFIX}layers.{index}."):
                state = state.advance(layer, index)
        with loaded_weights(model.norm, tiny, f"{TEXT_PREFIX}norm."):
            logits = nn.functional.linear(model.norm(state.hidden), reference.model.lm_head.weight)
    assert all(parameter.is_meta for parameter in model.parameters()), "weights were left behind"
    torch.testing.assert_close(rows[None], torch.from_numpy(expected.inputs_embeds), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, torch.from_numpy(expected.logits), rtol=0, atol=1e-3)


def mean_kl(reference: Reference, weights: dict[str, torch.Tensor], held_out: list[Any]) -> float:
    """The KL divergence of the checkpoint's model with these weights from itself, on average over all positions."""
    truth = [reference.prefill(inputs_of(prompt)).logits for prompt in held_out]
    changed = Reference(TINY)
    with torch.no_grad():
        for parameter, values in weights.items():
            changed.model.get_parameter(f"model.{parameter}").copy_(values)
    kls = [
        kl_divergence(changed.prefill(inputs_of(prompt)).logits, logits)
        for prompt, logits in zip(held_out, truth, strict=True)
    ]
    return float(sum(kl.sum() for kl in kls) / sum(map(len, kls)))


def test_calibrated_weights_are_closer_on_prompts_that_were_held_out(
    tiny: Checkpoint, prompts: Prompts, reference: Reference, tmp_path: Path
) -> None:
    lines: list[str] = []
    calibration_prompts = Prompts(prompts.prepared[::2], "")
    results = calibrate(
        tiny, SETTINGS, calibration_prompts, ir.DataType.FLOAT, CalibrationResults(tmp_path), lines.append
    )
    assert "calibrated layer 3: relative error of the outputs" in lines[-1]
    searched, calibrated = {}, {}
    for name in tiny.tensors:
        parameter = name.removeprefix("model.")
        if results.path(parameter, DATA).is_file():
            rows = tiny.read(name).to(torch.float32)
            searched[parameter] = blockwise.quantize_nearest(rows, 4, 32, False, True, torch.float32).dequantized
            calibrated[parameter] = results.read(parameter, 0, *rows.shape[:1], 4, rows.shape[1]).dequantized
    assert len(calibrated) == 4 * 7
    held_out = list(prompts.prepared[1:36:6])
    assert mean_kl(reference, calibrated, held_out) < 0.9 * mean_kl(reference, searched, held_out)


@pytest.mark.parametrize(
    ("gains", "dtype", "warning"),
    [
        ((64.0, 2.0**14), ir.DataType.FLOAT16, None),
        ((64.0, 2.0**15), ir.DataType.FLOAT16, r"mlp\.down_proj: .* float16 holds 2,096,128 there: other prompts may"),
        ((64.0, 2.0**17), ir.DataType.FLOAT16, r"mlp\.down_proj: .* float16 holds 2,096,128 there: a graph in float16"),
        ((2.0**14, 1.0), ir.DataType.FLOAT16, r"merger\.norm: .* float16 holds 65,504 there: a graph in float16 will"),
        ((64.0, 2.0**17), ir.DataType.FLOAT, None),
    ],
)
def test_calibration_warns_of_what_half_precision_cannot_hold(
    gains: tuple[float, float], dtype: ir.DataType, warning: str | None, prompts: Prompts, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(write_loud_checkpoint(tmp_path / "loud", *gains)))
    pictured = next(prompt for prompt in prompts.prepared if len(prompt.image_grid_thw))
    (tmp_path / "results").mkdir()
    lines: list[str] = []
    settings = SETTINGS.model_copy(update={"keep": ("*.weight",)})  # nothing is quantized, which takes the time
    calibrate(
        checkpoint, settings, Prompts([pictured], ""), dtype, CalibrationResults(tmp_path / "results"), lines.append
    )
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == (warning is not None)
    assert warning is None or re.search(warning, warnings[0]), warnings


RECIPE = """\
checkpoint: {{source: {checkpoint}}}
calibration: {{source: {prompts}}}
min_onnxruntime: {oldest}
graphs: [decoder_model_merged]
quantization: {{decoder_model_merged: {{method: int4, algorithm: gptq}}}}
"""


def write_recipe(work: Path, checkpoint: Path = TINY, prompts: Path = FOLDER, oldest: str = '"1.23.0"') -> Any:
    file = work / "calibrated.yaml"
    file.write_text(RECIPE.format(checkpoint=checkpoint, prompts=prompts, oldest=oldest), "utf-8")
    return load_recipe(file)


def copy_prompts(work: Path, lines: int = 3) -> Path:
    """Copy the first prompts to a folder, and all pictures."""
    folder = work / "prompts"
    shutil.copytree(FOLDER, folder)
    first = (FOLDER / PROMPTS_FILE).read_text("utf-8").splitlines()[:lines]
    (folder / PROMPTS_FILE).write_text("\n".join(first), "utf-8")
    return folder


def test_a_build_writes_what_calibration_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "results"
    original = calibration.calibrate

    def calibrate_and_copy(*args: Any) -> CalibrationResults:
        results = original(*args)
        shutil.copytree(results.directory, copy)
        return results

    monkeypatch.setattr(calibration, "calibrate", calibrate_and_copy)
    lines: list[str] = []
    built = build(write_recipe(tmp_path, prompts=copy_prompts(tmp_path)), out=tmp_path / "out", log=lines.append)
    entry = open_artifact(built).manifest.graphs["decoder_model_merged"]
    assert entry["calibration"]["prompts"] == 3
    assert not (built / "calibrated").exists()
    model, calibrated = ir.load(built / "onnx" / "decoder_model_merged.onnx"), CalibrationResults(copy)
    names = [name.removesuffix(f".{DATA}") for name in model.graph.initializers if name.endswith(f".{DATA}")]
    assert len(names) == 4 * 4 + 1 and any(len(members_of(name)) == 3 for name in names)
    for name in names:
        stored = model.graph.initializers[f"{name}.{DATA}"].const_value
        assert stored is not None
        width = 2 * stored.numpy().size // len(stored.numpy())
        parts = [calibrated.read(member, 0, calibrated.count(member), 4, width) for member in members_of(name)]
        expected = torch.cat([packed.data for packed in parts])
        assert torch.equal(torch.from_numpy(stored.numpy().copy()).reshape(expected.shape), expected), name


MISTAKES = {
    "no folder": (None, "", r"no prompts\.jsonl here"),
    "no prompt": ("", "", "holds no prompt"),
    "no json": ("{", "", r"prompts\.jsonl:1: "),
    "an unknown key": ('{"ask": "a", "image": "b.png"}', "", r"prompts\.jsonl:1: image: extra inputs"),
    "no such picture": ('{"ask": "a"}\n{"ask": "a", "images": ["b.png"]}', "", r"prompts\.jsonl:2: no such picture: b"),
    "no picture": ('{"ask": "a", "images": ["b.png"]}', "text", r"prompts\.jsonl:1: .*b\.png"),
}


@pytest.mark.parametrize(("lines", "picture", "message"), MISTAKES.values(), ids=MISTAKES)
def test_prompts_that_cannot_be_used_are_named(
    lines: str | None, picture: str, message: str, tiny: Checkpoint, tmp_path: Path
) -> None:
    if lines is not None:
        (tmp_path / PROMPTS_FILE).write_text(lines, "utf-8")
    if picture:
        (tmp_path / "b.png").write_text(picture, "utf-8")
    with pytest.raises(BuildError, match=message):
        read_prompts(tmp_path, tiny)


def test_experts_are_calibrated_with_the_tokens_sent_to_them(tmp_path: Path) -> None:
    """The skeleton reads each expert's rows in the order of its operator; one that gets too few tokens is logged."""
    moe = write_moe_checkpoint(tmp_path / "moe")
    lines: list[str] = []
    built = build(
        write_recipe(tmp_path, moe, copy_prompts(tmp_path, 12), '"1.23.2"'), out=tmp_path / "out", log=lines.append
    )
    assert any("experts got fewer than 128 tokens" in line for line in lines)
    errors = open_artifact(built).manifest.graphs["decoder_model_merged"]["weight_errors"]["by_tensor"]
    experts = {name: error for name, error in errors.items() if ".experts." in name}
    assert len(experts) == 6 and max(experts.values()) < 0.2  # rows in another order would be off by 1 and more


def test_a_recipe_names_prompts_and_calibrates_the_decoder_only(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    text = (
        f"checkpoint: {{source: {TINY}}}\nquantization: {{decoder_model_merged: {{method: int4, algorithm: gptq}}}}\n"
    )
    file.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match="calibration: algorithm: gptq needs prompts"):
        load_recipe(file)
    file.write_text(text.replace("decoder_model_merged", "embeddings"), "utf-8")
    with pytest.raises(RecipeError, match=r"quantization\.embeddings\.algorithm: only the decoder is calibrated"):
        load_recipe(file)
